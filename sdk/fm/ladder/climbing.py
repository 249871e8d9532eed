"""From the ground up: one batch by heart, then one process, two, four, … as many as the request asks for; on a cluster
first on one node, then on more of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fm.backends.base import Backend
from fm.creation import DryRun
from fm.ladder.ground import Ground, Say, fits, private_ground, with_request
from fm.ladder.overfit import EXAMPLES, overfit
from fm.ladder.processes import SAMPLE_STEPS, Climbed, climb_with
from fm.ladder.sample import write_sample
from fm.ladder.widths import Width, on, too_wide, widths
from fm.layout import Storage
from fm.preflights import Preflight, Rung
from fm.resolve import context_length_of
from fm.types import ModelRef

_USUAL_CONTEXT = 2048
_WITHOUT_TRACE: dict[str, Any] = {
    "register_to": None, "experiment_path": "", "eval_data_path": None, "eval_prompts": (), "trackers": (),
    "early_stopping_patience": None, "register_checkpoint": "last", "name": "preflight", "tags": {},
    "keep_checkpoints": 2, "min_processes": None,
}
"""What of a request would show elsewhere, goes by data that a rung lacks, removes what a rung goes on from, or lets it
be climbed with fewer processes than it says."""


def climb(prepared: DryRun, backend: Backend, storage: Storage, say: Say) -> Preflight:
    """Climbs up to the first rung that fails.

    Args:
        prepared: the request as `fm.creation.prepare` has checked it.
        backend: has the registered models.
        storage: where a folder for the preflight is made, and removed.
        say: told what is going on, a line at a time.
    """
    rungs: list[Rung] = []
    asked = replace(with_request(prepared, **_WITHOUT_TRACE), model=_as_folder(prepared.model, backend))
    with private_ground(storage, say) as ground:
        for rung in _rungs(ground, asked, say):
            rungs.append(rung)
            if rung.outcome == "fail":
                break
    return Preflight(model=prepared.model.name, rungs=tuple(rungs))


def _rungs(ground: Ground, prepared: DryRun, say: Say) -> Iterator[Rung]:
    request = prepared.request
    sharded, every = request.sharding != "none", widths(request)
    context = request.context_length or context_length_of(prepared.model) or _USUAL_CONTEXT

    def with_sample(name: str, rows: int, characters: int) -> DryRun:
        path = ground.storage.root / f"{name}.jsonl"
        sample = write_sample(prepared.train_data, request.task_type, path, rows=rows, characters=characters)
        return replace(prepared, train_data=sample)

    # What is to be sharded may need all processes to be held at all.
    one_batch = with_sample("batch", EXAMPLES, context // 2)
    yield overfit(ground, on(_widest(one_batch, every) if sharded else every[0], one_batch), say)

    # The same data to evaluate on: the loss before and after is then over the same examples.
    steps = with_sample("steps", SAMPLE_STEPS * request.batch_size, context)
    steps = replace(steps, eval_data=steps.train_data)
    steps = with_request(steps, eval_data_path=steps.train_data.path, lora={**request.lora.model_dump(), "dropout": 0})
    alone: Climbed | None = None
    for width in every:
        here = on(width, steps)
        if reason := too_wide(here):
            yield Rung(name=str(width), outcome="skipped", found=reason, processes=width.processes)
            continue
        if sharded and width.processes == 1 and not fits(here):
            yield Rung(name=str(width), outcome="skipped", found="one process can't hold the model", processes=1)
            continue
        say(f"{width}: some steps, and on from a checkpoint")
        climbed = climb_with(ground, here, str(width), alone)
        alone = climbed if width.processes == 1 else alone
        yield climbed.rung


def _widest(prepared: DryRun, every: Sequence[Width]) -> Width:
    """The widest rung for which there is room; the first if there is room for none."""
    return next((width for width in reversed(every) if not too_wide(on(width, prepared))), every[0])


def _as_folder(model: ModelRef, backend: Backend) -> ModelRef:
    """A registered model as the folder of its files: the store of a preflight has none registered."""
    if model.adapter_of:
        model = model.model_copy(update={"adapter_of": _as_folder(model.adapter_of, backend)})
    if model.kind != "registered":
        return model
    path = model.path or str(backend.models.open(model.name))
    return model.model_copy(update={"kind": "path", "path": path})
