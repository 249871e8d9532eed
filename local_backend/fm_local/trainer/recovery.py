"""Going back from a spike or a step that is not finite, to a state that was sound, past the data that led there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from fm.errors import RequestError
from fm.layout import run_of
from fm.lifecycle import EventType
from fm_local.trainer import checkpoint, watch
from fm_local.trainer.batching import Indices
from fm_local.trainer.report import Report
from fm_local.trainer.schedule import Position
from fm_local.trainer.setup import Training
from fm_local.trainer.step import Gradients

MOST_ROLLBACKS = 3
_WITHIN = 1000
"""Steps. So many spikes and broken steps within them are taken for the data's fault; one more, and the settings are
wrong."""
_NAMED = 8
"""Examples that a message names."""

StepExamples = Callable[[int], Indices]
"""The examples of a step, by its number; steps are counted from 0 here, as in `Position`."""


def trouble_since(at: Position, result: Gradients) -> int | None:
    """The step with which the trouble began that shows in the step `at`, or None if all is well."""
    if not (math.isfinite(result.loss) and math.isfinite(result.norm)):
        return at.step
    recent = [*at.losses, (at.step, result.loss)]
    return recent[-watch.RUN][0] if watch.has_spiked([loss for _, loss in recent]) else None


def go_back(
    since: int,
    at: Position,
    result: Gradients,
    training: Training,
    report: Report,
    *,
    checkpoints: Iterable[Path],
    examples_of: StepExamples,
    own_run: str,
    first_process: bool,
) -> tuple[Position, Path | None]:
    """Restores the newest of `checkpoints` from before step `since`, marks the steps from there to `at` as skipped, and
    removes the checkpoints in between, as far as they are those of run `own_run`: others may yet be
    resumed from them. Returns the position to go on from, and the checkpoint.

    Without such a checkpoint, a step that is not finite is skipped where it stands, since nothing of it was applied,
    and a spike is only reported.

    Raises:
        RequestError: no step has ever been finite, or this has happened too often.
    """
    finite = math.isfinite(result.loss) and math.isfinite(result.norm)
    bad = list(range(since, at.step + 1))
    named = [int(index) for step in bad for index in examples_of(step)]
    what = (
        f"from step {since + 1} to {at.step + 1} the loss stayed high, {result.loss:.3g} in the end"
        if finite
        else f"step {at.step + 1}: the loss is {result.loss} and the gradient's norm {result.norm}"
    )
    lately = [step for step in at.rollbacks if step > at.step - _WITHIN]
    by_step = {path: int(path.name.removeprefix("step-")) for path in checkpoints}
    found = checkpoint.newest_whole(path for path, step in by_step.items() if step <= since)
    if len(lately) == MOST_ROLLBACKS or not (finite or at.losses):
        raise _gave_up(what, len(lately), training.peak_rate, named, sound=by_step.get(found) if found else None)
    if found is not None:
        back = checkpoint.restore(found, training.trainee.trainable, training.optimizer, same=training.same)
        back.skipped = sorted({*at.skipped, *bad})
        back.rollbacks = [*lately, at.step]
        consequence = f"went back to step {back.step}, and passes over the {len(named)} examples of those steps"
        if first_process:
            for path in (path for path, step in by_step.items() if step > since and run_of(path) == own_run):
                shutil.rmtree(path, ignore_errors=True)
    else:
        back = at
        back.losses = []
        back.skipped = at.skipped if finite else sorted({*at.skipped, *bad})
        consequence = "there is no earlier checkpoint; " + ("it goes on" if finite else "the step is passed over")
    report.event(
        EventType.WARNING,
        f"{what}; {consequence}. Look at examples {_some(named)}; if it happens again, lower the learning rate",
        field="learning_rate",
        steps=[since + 1, at.step + 1],
        back_to=back.step,
        examples=named,
    )
    return back, found


def _gave_up(what: str, rollbacks: int, rate: float, examples: list[int], *, sound: int | None) -> RequestError:
    before = f", after going back {rollbacks} times" if rollbacks else ""
    return RequestError(
        f"{what}{before}, with a learning rate of up to {rate:.3g}; nothing of this step was kept",
        field="learning_rate",
        hint=f"lower the learning rate, to {rate / 3:.1g} say, or look at examples {_some(examples)} of the data"
        + (f"; the checkpoint of step {sound} is sound" if sound else ""),
    )


def _some(examples: list[int]) -> str:
    return ", ".join(map(str, examples[:_NAMED])) + ("…" if len(examples) > _NAMED else "")
