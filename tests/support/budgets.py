"""Runs with a wall-clock budget: whether a finished model exists when it falls, also after a kill."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fm
from fm.agent import processes
from fm.backends.stored import StoreBackend
from fm.layout import Storage
from fm.lifecycle import Status


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run with a budget ended; seconds are running time, without downtime."""

    status: str
    registered: str | None
    running_seconds: float
    attempts: int
    steps: int
    final_rate_share: float
    """The last step's learning rate as a share of the peak."""


def run_with_budget(
    backend: StoreBackend, home: Path, *, seconds: int, kill_after: float | None, patience: float, **request: Any
) -> Outcome:
    """Trains for `seconds`, and kills the training process `kill_after` seconds after its start, if given."""
    run = fm.create(training_duration=f"{seconds}s", register_to="main.budget.model", backend=backend, **request)
    if kill_after is not None:
        attempt = Storage(home).run(run.id).attempt(1)
        while run.refresh().record.attempt_started_at is None or (identity := processes.leftover(attempt)) is None:
            time.sleep(0.1)
        time.sleep(kill_after)
        os.kill(identity["pid"], signal.SIGKILL)
    run.wait(patience, raise_on_failure=False)
    rates = [rate for _, rate in run.metrics("lr").series("lr")]
    return Outcome(
        status=run.status.value,
        registered=run.registered_model,
        running_seconds=round(run.record.running_seconds, 2),
        attempts=run.attempt,
        steps=run.record.step,
        final_rate_share=rates[-1] / max(rates),
    )


def is_kept(outcome: Outcome, *, seconds: int) -> bool:
    """COMPLETED and registered within a tenth over the budget, with the rate fallen to a twentieth of its peak."""
    return (
        outcome.status == Status.COMPLETED
        and outcome.registered is not None
        and outcome.running_seconds <= 1.1 * seconds
        and outcome.final_rate_share <= 0.05
    )
