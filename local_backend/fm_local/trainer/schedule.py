"""How long the training goes on, how far it is, and the learning rate at that point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

import numpy as np

from fm.duration import Duration, Unit
from fm_local.trainer import watch
from fm_local.trainer.batching import Indices, epoch_steps

Shape = Literal["linear", "cosine", "constant"]
AUTO_TIMES = 10
"""How often "auto" intervals fall within the training."""
_REGISTRATION_SECONDS = 2.0
"""What a wall-clock budget leaves for the process to end and the agent to register the result."""
_SAFETY = 1.25
"""How much longer than measured the work after the last step may take."""
_LAST_SHARE = 0.999
"""Progress in the last step of a wall-clock budget: not 1, so that its rate is above 0."""
_OVERTIME = 0.05
"""Share of a wall-clock budget that a last step may take beyond its planned end."""


def learning_rate(progress: float, *, peak: float, shape: Shape, warmup: float) -> float:
    """The rate at `progress`, a number in (0, 1): up linearly during the share `warmup`, then down to 0 at 1.

    Steps ask for the middle of their own share of the training, so neither the first nor the last rate is 0.
    """
    if progress < warmup:
        return peak * progress / warmup
    if shape == "constant":
        return peak
    left = min(1.0, (1.0 - progress) / (1.0 - warmup))
    return peak * max(0.0, left if shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * left)))


@dataclass(slots=True)
class Position:
    """Where the training stands, before the step that comes next. All of it is in each checkpoint."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    index: int = 0
    """Steps done of `epoch`."""
    tokens: int = 0
    """Non-padding tokens seen."""
    clock_origin: float | None = None
    """Running seconds that had passed when the first step began."""
    step_seconds: float = 0.0
    """A step's length, as a running mean that leans to the longer side."""
    share: float = 0.0
    """Progress that the schedule had reached in the last step."""
    closing: dict[str, float] = field(default_factory=dict)
    """Seconds that each thing took, or is guessed to take, that has to be done after the last step."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Number and loss of the latest steps, by which a spike is known."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose examples are passed over."""
    rollbacks: list[int] = field(default_factory=list)
    """Steps from which the training went back to a checkpoint."""
    best_loss: float | None = None
    """The lowest on held-out data so far, after a first step."""
    best_step: int | None = None
    looks_since_best: int = 0

    def learnt(self, loss: float) -> None:
        """Takes in the loss of the step just done."""
        self.losses = [*self.losses, (self.step, loss)][-watch.HISTORY :]

    def judged(self, loss: float) -> None:
        """Takes in the loss on held-out data; one that is not finite is no better than any other."""
        if self.step == 0:
            return
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self.looks_since_best = loss, self.step, 0
        else:
            self.looks_since_best += 1

    def took(self, seconds: float) -> None:
        """Takes in the length of the step just done."""
        weight = 0.5 if seconds > self.step_seconds else 0.1
        self.step_seconds += weight * (seconds - self.step_seconds) if self.step_seconds else seconds


class Pace(Protocol):
    """When to end, and how far along a position is."""

    def finished(self, at: Position) -> bool: ...

    def progress(self, at: Position) -> float:
        """Share of the training that is done, from 0 to 1."""

    def progress_of_step(self, at: Position) -> float:
        """Progress in the middle of the step that starts at `at`."""

    def total_steps(self, at: Position) -> int | None:
        """Steps of the whole training, as far as that can be known."""


@dataclass(frozen=True, slots=True)
class CountedPace:
    """A duration in epochs, steps or tokens: all are a number of steps, known beforehand."""

    steps: int

    def finished(self, at: Position) -> bool:
        return at.step >= self.steps

    def progress(self, at: Position) -> float:
        return at.step / self.steps

    def progress_of_step(self, at: Position) -> float:
        return (at.step + 0.5) / self.steps

    def total_steps(self, at: Position) -> int | None:  # noqa: ARG002 - known without asking
        return self.steps


@dataclass(frozen=True, slots=True)
class ClockPace:
    """A wall-clock budget. Training ends early enough for what has to follow it, as measured so far in this run."""

    budget: float
    """Seconds from STARTED to COMPLETED."""
    elapsed: Callable[[], float]
    """Seconds of the budget that are spent."""

    def finished(self, at: Position) -> bool:
        late = self.elapsed() + at.step_seconds - self._end(at)
        # One step is made in any case: an untrained result helps nobody. And where time ran out unforeseen, as when
        # the machine was busy, one more step brings the rate down, if it costs little.
        return at.step > 0 and late > 0 and (at.share >= _LAST_SHARE or late > _OVERTIME * self.budget)

    def progress(self, at: Position) -> float:
        return self._share(at, self.elapsed())

    def progress_of_step(self, at: Position) -> float:
        elapsed = self.elapsed()
        if elapsed + 2 * at.step_seconds > self._end(at):
            return _LAST_SHARE  # no other step will fit: however long the steps are, the last one has the lowest rate
        return self._share(at, elapsed + at.step_seconds / 2)

    def total_steps(self, at: Position) -> int | None:
        if not at.step_seconds:
            return None
        return at.step + max(0, int((self._end(at) - self.elapsed()) / at.step_seconds))

    def _end(self, at: Position) -> float:
        return self.budget - _SAFETY * sum(at.closing.values()) - _REGISTRATION_SECONDS

    def _share(self, at: Position, elapsed: float) -> float:
        origin = self.elapsed() if at.clock_origin is None else at.clock_origin
        span = self._end(at) - origin
        return min(_LAST_SHARE, max(0.0, (elapsed - origin) / span)) if span > 0 else _LAST_SHARE


def running_seconds(started_at: datetime, elapsed_before: float, now: Callable[[], float]) -> Callable[[], float]:
    """A clock of the run's running time: what earlier attempts took, and what passed since this one was started."""
    return lambda: elapsed_before + now() - started_at.timestamp()


def steps_of(duration: Duration, lengths: Indices, batch_size: int, seed: int) -> int:
    """Optimiser steps of a counted duration. For tokens, the last step is the one that reaches the number."""
    per_epoch = -(-len(lengths) // batch_size)
    if duration.unit is Unit.BATCH:
        return duration.value
    if duration.unit is Unit.EPOCH:
        return duration.value * per_epoch
    epochs, rest = divmod(duration.value, int(lengths.sum()))
    if not rest:
        return epochs * per_epoch
    seen = np.cumsum([lengths[step].sum() for step in epoch_steps(len(lengths), batch_size, seed, epochs)])
    return epochs * per_epoch + int(np.searchsorted(seen, rest)) + 1


@dataclass(slots=True)
class Every:
    """Says when an interval has passed once more; "auto" is a tenth of the training."""

    interval: str
    measure: Callable[[Position], dict[Unit, float]]
    """A position in each unit."""
    share: Callable[[Position], float]
    """`Pace.progress`."""
    _passed: int = field(default=0)

    def start(self, at: Position) -> None:
        """Counts from `at`: what lies before it is not due any more."""
        self._passed = self._count(at)

    def due(self, at: Position) -> bool:
        """Whether the interval has passed since it was last due."""
        passed = self._count(at)
        due = passed > self._passed
        self._passed = max(passed, self._passed)
        return due

    def _count(self, at: Position) -> int:
        if self.interval == "auto":
            return int(self.share(at) * AUTO_TIMES + 1e-9)
        duration = Duration.parse(self.interval)
        return int(self.measure(at)[duration.unit] / duration.value + 1e-9)


def guess_closing(trained_parameters: int, *, look: bool) -> dict[str, float]:
    """Seconds for what follows the last step, before any of it was measured: AdamW's checkpoint is three times the
    weights, and writing with digests makes 100 MB/s on a slow disk."""
    seconds = 4e-8 * trained_parameters
    return {"save": 0.2 + 3 * seconds, "final": 0.3 + seconds, "look": 1.0 * look}
