"""What a training with several processes must show. Each function looks at what the processes wrote by themselves, and
returns what is wrong, or nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from fm.ladder.ground import Facts
from fm.layout import StageFolder

_NAMED = 6
Ranks = Sequence[Facts]


def incomplete(ranks: Ranks, *, processes: int, steps: int) -> str:
    """Processes that did not do all steps."""
    if len(ranks) != processes:
        return f"{len(ranks)} of {processes} processes took part"
    for rank, facts in enumerate(ranks):
        if len(facts.steps) != steps:
            return f"process {rank} did {len(facts.steps)} steps of {steps}"
    return ""


def wrongly_shared_out(ranks: Ranks, alone: Ranks | None, *, batch_size: int) -> str:
    """Examples that two processes took in one step, that nobody took in a whole pass, or that one process alone would
    not have taken there."""
    examples = ranks[0].header["examples"]
    steps = [[facts.steps[at]["examples"] for facts in ranks] for at in range(len(ranks[0].steps))]
    for number, taken in enumerate(steps, 1):
        if twice := _repeated(chain(*taken)):
            who = [str(rank) for rank, share in enumerate(taken) if twice[0] in share]
            return f"step {number}: processes {' and '.join(who)} took the same examples: {_some(twice)}"
    together = [sorted(chain(*taken)) for taken in steps]
    per_pass = -(-examples // batch_size)
    for begin in range(0, len(steps) - per_pass + 1, per_pass):
        taken_in_pass = list(chain(*together[begin : begin + per_pass]))
        if missed := set(range(examples)) - set(taken_in_pass):
            return f"pass {begin // per_pass + 1}: nobody took examples {_some(missed)}"
        if twice := _repeated(taken_in_pass):
            return f"pass {begin // per_pass + 1}: examples {_some(twice)} were taken more than once"
    for number, (here, step) in enumerate(zip(together, alone[0].steps if alone else [], strict=False), 1):
        if here != sorted(step["examples"]):
            return f"step {number}: they took examples {_some(here)}, one process alone {_some(step['examples'])}"
    return ""


def differing_gradients(ranks: Ranks) -> str:
    """Steps after which two processes hold different gradients, and so would change their weights differently."""
    keys = ["norm"] if ranks[0].header["sharded"] else ["norm", "gradient"]  # of parted ones each holds another part
    for at, first in enumerate(ranks[0].steps):
        for rank, facts in enumerate(ranks):
            step = facts.steps[at]
            if any(step[key] != first[key] for key in keys):
                return (
                    f"step {at + 1}: the gradients of processes 0 and {rank} differ (norms {first['norm']:.6g} and "
                    f"{step['norm']:.6g})"
                )
    return ""


def furthest(steps: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """How far loss and gradient norm of two trainings lie apart at most, as a share, and where."""
    return max(
        (abs(step[key] - other[key]) / max(abs(other[key]), 1e-12), f"step {step['step'] + 1}: the {name} is "
         f"{step[key]:.7g}, not {other[key]:.7g}")
        for step, other in zip(steps, others, strict=True)
        for key, name in (("loss", "loss"), ("norm", "gradient's norm"))
    )  # fmt: skip


def doubly_logged(folder: StageFolder) -> str:
    """What stands in the training's files more than once."""
    events = Counter(line["type"] for line in _lines(folder.events))
    for type in ("TRAIN_STARTED", "TRAIN_FINISHED"):
        if events[type] > 1:
            return f"{events[type]} processes reported {type}"
    keys = [(line["step"], key) for line in _lines(folder.metrics) for key in line["values"]]
    if twice := _repeated(keys):
        step, key = twice[0]
        return f"{key} of step {step} was logged more than once"
    return ""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _repeated(values: Iterable[Any]) -> list[Any]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _some(examples: Iterable[int]) -> str:
    listed = sorted(examples)
    return ", ".join(map(str, listed[:_NAMED])) + ("…" if len(listed) > _NAMED else "")
