"""The rungs with 1, 2, … N processes: some steps, then on from a checkpoint, and what every process says of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from fm.creation import DryRun
from fm.ladder import checks
from fm.ladder.ground import Facts, Ground, Trained, with_request
from fm.preflights import Check, Rung

SAMPLE_STEPS = 4
"""Optimiser steps that one pass over the sample takes."""
_STEPS = 2 * SAMPLE_STEPS
_SAVED_AT = SAMPLE_STEPS
_WARM_UP = 2
"""Steps left out of the throughput."""
_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2}
"""How far a step's loss and gradient norm may lie apart, as a share, where the same is added up in another order. In
bf16, two processes were measured up to 0.01 apart from one."""
_EVAL_LOSS = "metrics/eval/LanguageCrossEntropy"
_SPEED, _SECONDS = "throughput/tokens_per_sec", "time/step_seconds"
_OURS = "the trainer is at fault, not the request: train with num_processes=1, and report what -o json shows"


class Climbed(NamedTuple):
    """A rung, and what the next ones are compared with."""

    rung: Rung
    ranks: list[Facts]


def climb_with(ground: Ground, prepared: DryRun, name: str, alone: Climbed | None) -> Climbed:
    """Trains the sample that `prepared` names with the request's processes, and then on from a checkpoint.

    Args:
        alone: what one process did; None if this is it, or if one process can't hold the model.
    """
    began, processes = time.monotonic(), prepared.request.num_processes
    trained = ground.train(
        with_request(
            prepared, training_duration=f"{_STEPS}ba", save_interval=f"{_SAVED_AT}ba", eval_interval=f"{_STEPS}ba"
        )
    )
    ranks = trained.facts()
    found: list[Check] = []
    for check in _checks(ground, trained, ranks, alone):
        found.append(check)
        if not check.passed:
            break
    last = found[-1]
    speed = _speed(trained) if last.passed else None
    single = alone.rung.tokens_per_second if alone else speed
    rung = Rung(
        name=name,
        outcome="ok" if last.passed else "fail",
        found="; ".join(check.found for check in found) if last.passed else last.found,
        remedy=last.remedy,
        processes=processes,
        device=trained.model.get("device", ""),
        precision=trained.model.get("precision", ""),
        checks=tuple(found),
        loss=_loss(trained),
        tokens_per_second=speed,
        efficiency=speed / (processes * single) if speed and single else None,
        seconds=time.monotonic() - began,
    )
    return Climbed(rung, ranks)


def _checks(ground: Ground, trained: Trained, ranks: list[Facts], alone: Climbed | None) -> Iterator[Check]:
    """Each builds on the ones before."""
    request = trained.run.record.request
    processes = request.num_processes
    problem = trained.problem or checks.incomplete(ranks, processes=processes, steps=_STEPS)
    yield _check("loop", problem, f"{_STEPS} steps", "see the message: the run itself would end with it too")
    yield _check("logger", checks.doubly_logged(trained.folder), "one logger", _OURS)
    others = alone.ranks if alone else None
    problem = checks.wrongly_shared_out(ranks, others, batch_size=request.batch_size)
    yield _check("examples", problem, "each example once a pass", _OURS)
    if processes > 1:
        yield _check("gradients", checks.differing_gradients(ranks), "equal gradients", _OURS)
    if others:
        yield _as_one(trained, ranks, others)
    before, after = _loss(trained) or (0.0, 0.0)
    problem = "" if after < before else f"the loss over the sample did not fall: {before:.4f} → {after:.4f}"
    yield _check("loss", problem, "the loss fell", "lower the learning rate, or leave learning_rate out")
    yield _goes_on(ground, trained, ranks)


def _as_one(trained: Trained, ranks: list[Facts], others: list[Facts]) -> Check:
    if ranks[0].header["dropout"]:
        return _check("as one process", "", "not compared with one process, which would drop other activations", "")
    share, where = checks.furthest(ranks[0].steps, others[0].steps)
    problem = f"it differs from one process: {where}" if share > _TOLERANCE[trained.model["precision"]] else ""
    return _check("as one process", problem, f"as one process to {share:.0e}", _OURS)


def _goes_on(ground: Ground, trained: Trained, ranks: list[Facts]) -> Check:
    """Trains on from the checkpoint in the middle. The steps after it must be those that were done without a break: the
    first shows the weights, the later ones the optimiser's state and the place in schedule and data."""
    again = ground.train_on(trained, step=_SAVED_AT)
    if again.problem:
        return _check("checkpoint", f"training on from a checkpoint failed: {again.problem}", "", "see the message")
    after = again.facts()
    problem = checks.incomplete(after, processes=len(ranks), steps=_STEPS - _SAVED_AT)
    if not problem:
        share, where = checks.furthest(after[0].steps, ranks[0].steps[_SAVED_AT:])
        exact = share <= (0.0 if trained.model["device"].startswith("cpu") else _TOLERANCE[trained.model["precision"]])
        problem = "" if exact else f"training on from a checkpoint is not the same: {where}"
    return _check("checkpoint", problem, "goes on from a checkpoint", _OURS)


def _check(name: str, problem: str, found: str, remedy: str) -> Check:
    return Check(name=name, passed=not problem, found=problem or found, remedy=remedy if problem else "")


def _loss(trained: Trained) -> tuple[float, float] | None:
    """Mean loss over the whole sample, before the first step and after the last."""
    series = trained.run.metrics(_EVAL_LOSS).series(_EVAL_LOSS)
    return (series[0][1], series[-1][1]) if len(series) > 1 else None


def _speed(trained: Trained) -> float:
    """Non-padding tokens a second, over all processes."""
    rows = [row.values for row in trained.run.metrics([_SPEED, _SECONDS]) if _SPEED in row.values][_WARM_UP:]
    return sum(row[_SPEED] * row[_SECONDS] for row in rows) / sum(row[_SECONDS] for row in rows)
