"""What an agent hands to a trainer, and the lines that come back: the whole interface between the two.

A stage gets a folder with a `Job` in it. It writes events, metrics and a heartbeat there through a `Reporter`, and
nothing else that an agent reads. So a trainer knows nothing of stores, servers or schedulers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict

from fm.clock import Clock, SystemClock
from fm.files import disk_errors, make_private, write_json
from fm.layout import StageFolder
from fm.lifecycle import EventType
from fm.request import TrainRequest
from fm.types import DataRef, ModelRef

Stage = Literal["check", "train"]
PauseReason = Literal["waiting", "loading", "saving", "answering"]
"""What may keep a healthy training from doing a step for long. While it waits, for a place on a cluster, it has not
begun: no wall-clock budget counts that."""

EXIT_FAILED = 1
"""The stage wrote a FAILED, CHECK_FAILED or FAILED_EXCEPTION event before it exited."""
EXIT_STOPPED = 75
"""Asked to stop (SIGTERM), and a whole checkpoint of the last step was saved first."""
EXIT_DISK_FULL = 76
"""No space left; perhaps not even for an event."""
EXIT_LOST = 77
"""Another process of the same training was lost; this one could not go on alone."""


class Job(BaseModel):
    """One stage of one run: what the process in a stage folder is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    stage: Stage
    run_id: str
    run_name: str
    attempt: int
    """Which training start this is, from 1; 0 for the check."""
    request: TrainRequest
    model: ModelRef
    train_data: DataRef
    eval_data: DataRef | None = None
    storage_root: str
    prepared: dict[str, Any] | None = None
    """For training: what the check wrote in the data of its CHECK_PASSED event (shards, tokenizer, counts)."""
    started_at: datetime
    """When this stage was started, as the STARTED event says; a wall-clock budget counts from here."""
    elapsed_seconds: float = 0.0
    """Training time of the earlier attempts, which a wall-clock budget has already spent."""
    devices: tuple[int, ...] = ()
    """Indices of the accelerators that the agent gives to this run; empty where the machine has none."""
    resume_from: tuple[str, ...] = ()
    """Checkpoint folders to look through for the newest whole one; empty to start from the beginning."""
    allow_oversize: bool = False
    """Whether it is tried even if it certainly doesn't fit."""
    starved: int = 0
    """Earlier attempts that died while their machine was out of memory."""
    rank_facts: bool = False
    """Whether each process of the training writes what itself took and computed, for who wants to compare them."""

    @classmethod
    def read(cls, folder: StageFolder) -> Job:
        return cls.model_validate_json(folder.job.read_bytes())

    def write(self, folder: StageFolder) -> None:
        make_private(folder.path)
        write_json(folder.job, self.model_dump(mode="json"))


class Reporter:
    """Appends events, metrics and heartbeats to the files of a stage folder. Used by one process of a stage.

    Each line is one `write` of less than a page or so, flushed at once: a killed process leaves at most one partial
    last line, which readers pass over and the next process of the stage never continues.
    """

    def __init__(self, folder: StageFolder, clock: Clock | None = None) -> None:
        self._folder = folder
        self._clock = clock or SystemClock()
        self._events = _append_only(folder.events)
        self._metrics = _append_only(folder.metrics)
        self._last_beat = 0.0
        self._step = 0
        self._pause: dict[str, Any] | None = None

    def event(self, type: EventType, message: str, **data: Any) -> None:
        """Reports what happened. `data` must be JSON-able; the agent copies it to the store."""
        line = {"type": type.value, "time": self._clock.now().isoformat(), "message": message, "data": data}
        self._line(self._events, line)
        os.fsync(self._events.fileno())

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Reports figures of optimiser step `step`."""
        self._line(self._metrics, {"step": step, "time": self._clock.now().isoformat(), "values": dict(values)})

    def heartbeat(self, step: int, *, every: float = 1.0) -> None:
        """Shows that step `step` is done, which ends a pause; written at most once in `every` seconds."""
        every = 0.0 if self._pause else every
        self._step, self._pause = step, None
        self._beat(every)

    def sign(self) -> None:
        """Shows that work goes on within a step or a pause; written at most once a second."""
        self._beat(1.0)

    def pause(self, why: PauseReason, seconds: float) -> None:
        """Says that from now on, until the next step is done, up to `seconds` may pass between two signs."""
        self._pause = {"why": why, "seconds": seconds}
        self._beat(0.0)

    def close(self) -> None:
        self._events.close()
        self._metrics.close()

    def _beat(self, every: float) -> None:
        now = time.monotonic()
        if now - self._last_beat >= every:
            self._last_beat = now
            beat = {"step": self._step, "time": self._clock.now().isoformat(), "pause": self._pause}
            write_json(self._folder.heartbeat, beat)

    def _line(self, file: IO[bytes], value: Mapping[str, Any]) -> None:
        with disk_errors(self._folder.path):
            file.write(json.dumps(value, allow_nan=False, default=str).encode() + b"\n")


def _append_only(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)
