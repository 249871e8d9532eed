"""A launcher whose trainings train nothing: they write in their folders what a script says. No store, no process."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fm.clock import Clock
from fm.duration import Unit
from fm.files import make_private, seal
from fm.job import EXIT_FAILED, EXIT_STOPPED, Job, Reporter, Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder
from fm.lifecycle import EventType, Fault
from fm.types import RunRecord


@dataclass(frozen=True, slots=True)
class Script:
    """What the fake's training does.

    The loss falls from `loss[0]` towards `loss[1]` over `steps` optimiser steps; a checkpoint is saved every
    `save_every` steps.
    """

    steps: int | None = None
    """None: as many as the request's duration counts in "ba", else 10."""
    loss: tuple[float, float] = (3.0, 1.0)
    save_every: int = 5
    check_fails: str = ""
    """If given, the data check refuses with this message."""
    fails_at: int | None = None
    """Step at which training ends in FAILED."""
    failure: str = "scripted failure"
    fault: Fault = Fault.USER
    dies_at: tuple[int, ...] = ()
    """Steps before which the process dies, each once: the agent restarts it from the last checkpoint."""
    holds_at: int | None = None
    """Step at which training goes on for ever, until it is cancelled."""
    stalls_at: int | None = None
    """Step at which training hangs, once: the agent ends the process and restarts it from the last checkpoint."""


class ScriptedLauncher:
    """Seam 2 without processes: each `poll` lets a stage do a little more of what its script says."""

    def __init__(self, script: Script, clock: Clock) -> None:
        self.script = script
        self._clock = clock
        self._stages: dict[int, _Stage] = {}
        self._numbers = itertools.count(1)
        self._deaths: set[tuple[str, int]] = set()

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        number = next(self._numbers)
        make_private(folder.path)
        self._stages[number] = _Stage(self.script, folder, run, self._deaths, self._clock)
        return {"stage": number, "kind": stage}

    def poll(self, handle: Handle) -> Poll:
        stage = self._stages.get(handle["stage"])
        if stage is None:
            return Poll(Life.EXITED)
        stage.advance()
        return Poll(Life.ALIVE) if stage.code is None else Poll(Life.EXITED, stage.code)

    def signal(self, handle: Handle, how: Literal["stop", "kill"]) -> None:
        if stage := self._stages.get(handle["stage"]):
            stage.signal(how)


@dataclass
class _Stage:
    """One scripted stage: an iterator that writes what a real one would, a piece at a time."""

    script: Script
    folder: StageFolder
    run: RunRecord
    deaths: set[tuple[str, int]]
    clock: Clock
    code: int | None = None
    stopping: bool = False
    work: Iterator[None] = field(init=False)

    def __post_init__(self) -> None:
        self.job = Job.read(self.folder)
        duration = self.job.request.duration
        self.steps = self.script.steps or (duration.value if duration.unit is Unit.BATCH else 10)
        self.report = Reporter(self.folder, self.clock)
        self.work = self._check() if self.job.stage == "check" else self._train()

    def advance(self) -> None:
        if self.code is None:
            next(self.work, None)
            if self.code is not None:
                self.report.close()

    def signal(self, how: str) -> None:
        if how == "kill" and self.code is None:
            self.code = -9
        self.stopping = True

    def _check(self) -> Iterator[None]:
        if self.script.check_fails:
            self.report.event(EventType.CHECK_FAILED, self.script.check_fails, fault=Fault.USER.value)
            self.code = EXIT_FAILED
            yield
        rows = self.job.train_data.rows or 1
        counts = {"examples": rows, "tokens": 100 * rows, "trained_tokens": 40 * rows, "truncated": 0, "dropped": 0}
        self.report.event(EventType.CHECK_PASSED, f"{rows:,} examples", counts=counts)
        self.code = 0
        yield

    def _train(self) -> Iterator[None]:
        script, total = self.script, self.steps
        first = _last_checkpoint(self.job.resume_from)
        self._log(f"attempt {self.job.attempt} of {self.run.name} goes on from step {first}\n")
        self.report.event(EventType.DATA_VALIDATED, "data is as it was checked")
        self.report.event(EventType.MODEL_INITIALIZED, self.job.model.name, device="fake")
        self.report.event(EventType.TRAIN_STARTED, f"{total} steps", total_steps=total, step=first)
        yield
        for step in range(first + 1, total + 1):
            if (self.run.id, step) not in self.deaths and step in script.dies_at:
                self.deaths.add((self.run.id, step))
                self.code = -9
                yield
            if step == script.fails_at:
                self._log(f"step {step}: {script.failure}\n")
                self.report.event(EventType.FAILED, script.failure, fault=script.fault.value)
                self.code = EXIT_FAILED
                yield
            while step == script.holds_at and not self.stopping:
                self.report.heartbeat(step, every=0.0)
                yield
            if step == script.stalls_at and (self.run.id, step) not in self.deaths:
                self.deaths.add((self.run.id, step))
                while True:
                    yield
            self._step(step, total)
            if self.stopping:
                self._save(step)
                self.code = EXIT_STOPPED
                yield
            yield
        self._finish(total)
        yield

    def _step(self, step: int, total: int) -> None:
        loss = self._loss(step)
        values = {"loss/train/total": loss, "metrics/train/LanguageCrossEntropy": loss, "lr": 1e-4 * (1 - step / total)}
        self.report.metrics(step, values)
        self._log(f"step {step}/{total} loss {loss:.4f}\n")
        epoch = step / total
        self.report.event(EventType.TRAIN_UPDATED, f"step {step}", step=step, epoch=epoch, tokens=1600 * step)
        if step % self.script.save_every == 0:
            self._save(step)

    def _loss(self, step: int) -> float:
        first, last = self.script.loss
        return last + (first - last) * math.exp(-3 * step / self.steps)

    def _save(self, step: int) -> None:
        folder = make_private(self.folder.checkpoint(step))
        (folder / "weights.safetensors").write_bytes(_SAFETENSORS)
        seal(folder, step=step, metrics={"loss": self._loss(step)}, saved_at=self.clock.now().timestamp())
        self.report.event(EventType.CHECKPOINT_SAVED, f"step {step}", step=step, path=str(folder))

    def _finish(self, total: int) -> None:
        loss = self._loss(total)
        if prompts := self.job.request.eval_prompts:
            samples = [{"prompt": prompt, "answer": f"a scripted answer to {prompt!r}"} for prompt in prompts]
            self.report.event(EventType.SAMPLES_GENERATED, f"{len(samples)} answers", samples=samples, step=total)
        kind = "full" if self.job.request.method == "full" else "adapter"
        final = make_private(self.folder.final)
        name = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
        (final / name).write_bytes(_SAFETENSORS)
        (final / "config.json").write_text(json.dumps({"model_type": "fake"}))
        seal(final, kind=kind, metrics={"loss/train/total": loss})
        self.report.event(
            EventType.TRAIN_FINISHED, f"loss {loss:.4f}", step=total, metrics={"loss/train/total": loss}, epoch=1.0
        )
        self.code = 0

    def _log(self, text: str) -> None:
        with self.folder.log.open("a") as file:
            file.write(text)


def _last_checkpoint(folders: tuple[str, ...]) -> int:
    steps = [int(Path(folder).name.removeprefix("step-")) for folder in folders]
    return max(steps, default=0)


_SAFETENSORS = struct.pack("<Q", 8) + b"{}      "
"""A valid file without tensors: the header's length, then an empty JSON object padded to eight bytes."""
