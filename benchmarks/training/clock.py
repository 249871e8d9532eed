"""What each worker measures, in the same way: when each optimiser step ended, and how many tokens and what loss it had.

A worker's result is a file of JSON: ``steps`` (time, real tokens, examples or None, loss), ``started``,
``peak_bytes``, seconds of other things, and where its weights lie.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.task import SKIPPED_STEPS


@dataclass
class Step:
    """An optimiser step that has ended."""

    at: float
    """Seconds since 1970."""
    tokens: int
    """Real ones: no padding."""
    examples: float
    """Of the epoch, up to and with this step."""
    loss: float
    """Nats for each trained token."""
    cpu: float
    """Processor time of the process so far, seconds."""


@dataclass
class Result:
    """What a worker reports."""

    started: float = field(default_factory=time.time)
    """When its process was asked for, in seconds since 1970."""
    steps: list[Step] = field(default_factory=list)
    peak_bytes: int = 0
    save_s: float | None = None
    """Seconds in which the checkpoint was saved, if one was asked for."""
    checkpoint: str | None = None
    """Its folder."""
    prepare_s: float | None = None
    """Seconds of parsing and tokenising, in the trainer's own process."""
    weights: str | None = None
    """Folder of the trained weights."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Result:
        values = json.loads(path.read_text())
        return cls(**(values | {"steps": [Step(**step) for step in values["steps"]]}))

    def timing_saves(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """`inner`, a part of saving a checkpoint, whose seconds are added to `save_s`."""

        def timed(*more: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            answer = inner(*more, **named)
            self.save_s = (self.save_s or 0.0) + time.perf_counter() - begin
            return answer

        return timed

    def tokens_per_second(self, clock: str) -> float:
        """Of the steady state: the first steps end before the clock starts. `clock`: "at" or "cpu", as in `Step`."""
        counted = self.steps[SKIPPED_STEPS:]
        begin, end = getattr(self.steps[SKIPPED_STEPS - 1], clock), getattr(counted[-1], clock)
        return float(sum(step.tokens for step in counted) / (end - begin))

    @property
    def first_step_s(self) -> float:
        """From the process's start to the end of its first step."""
        return self.steps[0].at - self.started


def peak_bytes() -> int:
    """The most memory so far: the device's if there is a GPU, else the process's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
