"""The first rung: can these parameters, at this learning rate, learn one small batch by heart?

If they can't, the rung finds out what is to be changed by changing it: first the learning rate, since a bad one is
easily taken for a lack of capacity, then what the adapter consists of.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

from fm.creation import DryRun
from fm.ladder.ground import Ground, Say, fits, with_request
from fm.preflights import Rung, Trial, Verdict
from fm.progress import TRAIN_LOSS

EXAMPLES = 8
STEPS = 150
_LAST = 5
"""Steps at the end over which the loss is averaged."""
_SHARE_LEFT = 0.15
"""Of the loss that can be learnt away, what may be left. Measured at 150 steps on a Llama of 90,000 parameters that had
learnt to spell: LoRA on all layers of rank 64 0.02, of rank 16 0.01, of rank 2 0.13; too little: rank 1 0.26, query and
value alone 0.47, query alone 0.81, a twentieth of the right rate 0.88. Others found rank 8 on all layers at 0.001 of
chance, query and value at 0.17, rank 1 at 0.34 (32 items)."""
_USUAL_START = 3.0
"""Nats. A loss that begins above this is easily reduced to a small share without anything being known by heart."""
_LARGE_RANK, _MOST_RANK, _MORE_RANK = 64, 1024, 8

class _Variant(NamedTuple):
    """Something to try instead of the request, and what is wrong with the request if it helps."""

    name: str
    verdict: Verdict
    changes: dict[str, Any]


def overfit(ground: Ground, prepared: DryRun, say: Say) -> Rung:
    """Trains on the sample that `prepared` names until it should be known by heart; see the module."""
    began = time.monotonic()
    trials: list[Trial] = []
    machine: dict[str, Any] = {}

    def learns(name: str, changes: dict[str, Any]) -> bool:
        say(f"overfit: {name}")
        trial, said = _try(ground, prepared, name, changes)
        machine.update(said if not trials else {})
        trials.append(trial)
        return trial.learnt

    def rung(verdict: Verdict | None, found: str, remedy: str = "") -> Rung:
        before, after = trials[0].loss_before, trials[0].loss_after
        return Rung(
            name="overfit",
            outcome="ok" if verdict == "learns" else "fail",
            found=found,
            remedy=remedy,
            verdict=verdict,
            trials=tuple(trials),
            processes=prepared.request.num_processes,
            device=machine.get("device", ""),
            precision=machine.get("precision", ""),
            loss=None if before is None or after is None else (before, after),
            seconds=time.monotonic() - began,
        )

    if learns("as asked", {}):
        return rung("learns", f"{EXAMPLES} examples by heart in {STEPS} steps")
    asked = trials[0]
    if asked.learning_rate is None:
        return rung(None, f"the training failed: {asked.problem}", "see the message: the run would end with it too")
    for variant in _other_rates(asked, machine["usual_rate"]):
        if learns(variant.name, variant.changes):
            verdict: Verdict = variant.verdict
            better = trials[-1].learning_rate
            return rung(
                verdict,
                f"{verdict}: {_at(asked)}, {_at(trials[-1])}",
                f"learning_rate={better:.3g}, or leave learning_rate out",
            )
    furthest = min(trials, key=lambda trial: float("inf") if trial.loss_after is None else trial.loss_after)
    for variant in _larger(prepared, asked):
        if learns(variant.name, variant.changes):
            found = f"{variant.verdict}: no learning rate teaches it ({_at(furthest)}), {_at(trials[-1])}"
            return rung(variant.verdict, found, _remedy(variant))
    return rung(
        "does not learn",
        f"neither another learning rate nor more parameters learn {EXAMPLES} examples in {STEPS} steps",
        "look at what is trained: `ftctl data preview`; a merged adapter can be trained on with a larger one",
    )


def _try(ground: Ground, prepared: DryRun, name: str, changes: dict[str, Any]) -> tuple[Trial, dict[str, Any]]:
    """Trains with `changes`; returns also what the trainer said of model and machine."""
    trained = ground.train(
        with_request(
            prepared,
            **{
                "training_duration": f"{STEPS}ba",
                "save_interval": f"{STEPS}ba",
                "batch_size": EXAMPLES,
                "lr_scheduler": "constant",
                "warmup": 0.1,
                **changes,
            },
        )
    )
    losses = [loss for _, loss in trained.run.metrics(TRAIN_LOSS).series(TRAIN_LOSS)]
    facts = trained.facts()
    before = losses[0] if losses else None
    after = fmean(losses[-_LAST:]) if losses and not trained.problem else None
    least = facts[0].header["least_loss"] if facts else 0.0
    trial = Trial(
        name=name,
        learning_rate=trained.model.get("learning_rate"),
        loss_before=before,
        loss_after=after,
        least_loss=least,
        learnt=before is not None and after is not None and is_learnt(before, after, least),
        problem=trained.problem,
    )
    return trial, trained.model


def is_learnt(before: float, after: float, least: float) -> bool:
    """Whether a loss that fell so far, of `least` at best, means that the examples are known by heart."""
    return after - least <= _SHARE_LEFT * (min(before, _USUAL_START) - least)


def _other_rates(asked: Trial, usual: float) -> Iterator[_Variant]:
    """The neighbouring decades, and the usual rate where that lies beyond them; first where it is likely to be."""
    rate = asked.learning_rate or usual
    higher = [10 * rate, *([usual] if usual > 10 * rate else [])]
    lower = [rate / 10, *([usual] if usual < rate / 10 else [])]
    broke_down = asked.loss_after is None or asked.loss_before is None or asked.loss_after > asked.loss_before
    if not broke_down:
        for value in higher:
            yield _Variant(f"learning rate {value:.3g}", "learning rate too small", {"learning_rate": value})
    if broke_down or rate >= usual:
        for value in lower:
            yield _Variant(f"learning rate {value:.3g}", "learning rate too large", {"learning_rate": value})


def _larger(prepared: DryRun, asked: Trial) -> Iterator[_Variant]:
    """More parameters, at the usual rate for them; all weights also at the rate that was asked for, since the usual one
    is that of far larger models."""
    request = prepared.request
    if request.method == "full" or prepared.model.adapter_of:
        return
    same = {"learning_rate": None}
    lora = request.lora.model_dump()
    rank = min(_MOST_RANK, max(_LARGE_RANK, _MORE_RANK * request.lora.rank))
    more = {"rank": rank, "alpha": 2.0 * rank}
    if lora["target_modules"] != "all-linear":
        lora |= {"target_modules": "all-linear"}
        yield _Variant("adapters on all linear layers", "target modules too few", {**same, "lora": dict(lora)})
    yield _Variant(f"rank {rank}", "rank too small", {**same, "lora": {**lora, **more}})
    full = with_request(prepared, method="full")
    if not fits(full):
        return
    for rate in (None, asked.learning_rate):
        yield _Variant("method full", "adapter too small", {"learning_rate": rate, "method": "full"})


def _at(trial: Trial) -> str:
    if trial.loss_after is None:
        return f"at {trial.learning_rate:.3g} {trial.problem or 'it breaks down'}"
    return f"{trial.name}: loss {trial.loss_before:.3g} → {trial.loss_after:.3g}"


def _remedy(variant: _Variant) -> str:
    if variant.verdict == "adapter too small":
        return 'method="full"'
    if variant.verdict == "target modules too few":
        return 'lora={"target_modules": "all-linear"}'
    lora = variant.changes["lora"]
    modules = ', "target_modules": "all-linear"' if lora["target_modules"] == "all-linear" else ""
    return f'lora={{"rank": {lora["rank"]}, "alpha": {lora["alpha"]:g}{modules}}}'
