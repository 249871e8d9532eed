"""What the training tells: lines for the agent, figures for trackers. Only the first process of several speaks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from accelerate import Accelerator

from fm.job import Job, PauseReason, Reporter
from fm.layout import StageFolder
from fm.lifecycle import EventType

_UPDATE_SECONDS = 1.5
_PAUSES: dict[PauseReason, float] = {"loading": 1800, "saving": 300, "answering": 1800}
"""Seconds beside what the bytes take: a first step may compile, and each answer of a large model takes long."""
_SLOWEST_DISK = 20e6
"""Bytes per second, with all that is written read again for its digest; a network disk in use makes 100 MB/s."""


class Report:
    """The reporter and the trackers of the first process; the others' reports go nowhere."""

    def __init__(self, folder: StageFolder, job: Job, accelerator: Accelerator) -> None:
        self._reporter = Reporter(folder) if accelerator.is_main_process else None
        self._accelerator = accelerator
        self._tracked = bool(job.request.trackers)
        self._last_update = float("-inf")
        if self._tracked:
            flat = {
                key: value if isinstance(value, str | int | float | bool) else json.dumps(value)
                for key, value in job.request.model_dump(mode="json").items()
            }
            accelerator.init_trackers(
                (job.request.experiment_path.strip("/") or "ftctl").replace("/", "-"), config=flat
            )

    def event(self, type: EventType, message: str, **data: Any) -> None:
        if self._reporter:
            self._reporter.event(type, message, **data)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if self._reporter:
            self._reporter.metrics(step, values)
        if self._tracked:
            self._accelerator.log(dict(values), step=step)

    def heartbeat(self, step: int) -> None:
        if self._reporter:
            self._reporter.heartbeat(step)

    def sign(self) -> None:
        if self._reporter:
            self._reporter.sign()

    def pause(self, why: PauseReason, *, moved: int = 0) -> None:
        """Says that there may be no sign for long, as `moved` bytes are read or written."""
        if self._reporter:
            self._reporter.pause(why, _PAUSES[why] + moved / _SLOWEST_DISK)

    def update_is_due(self) -> bool:
        """Whether it is time for another TRAIN_UPDATED event: at most one in 1.5 s."""
        return self._reporter is not None and time.monotonic() - self._last_update >= _UPDATE_SECONDS

    def update(self, progress: Mapping[str, Any], *, seconds_left: float) -> None:
        """Writes a TRAIN_UPDATED event."""
        self._last_update = time.monotonic()
        of = f" of {progress['total_steps']}" if progress["total_steps"] else ""
        end = datetime.now(UTC) + timedelta(seconds=seconds_left)
        self.event(
            EventType.TRAIN_UPDATED, f"step {progress['step']}{of}", **progress, estimated_end_time=end.isoformat()
        )

    def close(self) -> None:
        if self._tracked:
            self._accelerator.end_training()
        if self._reporter:
            self._reporter.close()
