"""What a stage of a run is to do, as its process reads it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fm.agent.inputs import Inputs
from fm.job import Job, Stage
from fm.layout import Storage
from fm.types import RunRecord


def make_job(
    storage: Storage,
    run: RunRecord,
    inputs: Inputs,
    stage: Stage,
    attempt: int,
    *,
    prepared: dict[str, Any] | None,
    now: datetime,
    devices: tuple[int, ...],
) -> Job:
    """The job of the stage that `run` begins `now`."""
    return Job(
        stage=stage,
        run_id=run.id,
        run_name=run.name,
        attempt=attempt,
        request=run.request,
        model=inputs.model,
        train_data=inputs.train_data,
        eval_data=inputs.eval_data,
        storage_root=str(storage.root),
        prepared=prepared,
        started_at=now,
        elapsed_seconds=run.running_seconds,
        devices=devices,
        allow_oversize=run.allow_oversize,
        starved=run.starved,
        resume_from=tuple(map(str, inputs.checkpoints)) if stage == "train" else (),
    )
