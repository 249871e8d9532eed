"""From the ground up: one batch by heart, then one process, two, four, … as many as the request asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fm.agent.devices import Devices
from fm.backends.base import Backend
from fm.creation import DryRun
from fm.ladder.ground import Ground, fits, private_ground, with_request
from fm.ladder.overfit import EXAMPLES, Say, overfit
from fm.ladder.processes import SAMPLE_STEPS, Climbed, climb_with
from fm.ladder.sample import write_sample
from fm.layout import Storage
from fm.preflights import Preflight, Rung
from fm.resolve import context_length_of
from fm.types import ModelRef

_USUAL_CONTEXT = 2048
_WITHOUT_TRACE: dict[str, Any] = {
    "register_to": None, "experiment_path": "", "eval_data_path": None, "eval_prompts": (), "trackers": (),
    "early_stopping_patience": None, "register_checkpoint": "last", "name": "preflight", "tags": {},
    "keep_checkpoints": 2,
}
"""What of a request would show elsewhere, goes by data that a rung lacks, or removes what a rung goes on from."""


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
    with private_ground(storage) as ground:
        for rung in _rungs(ground, asked, say):
            rungs.append(rung)
            if rung.outcome == "fail":
                break
    return Preflight(model=prepared.model.name, rungs=tuple(rungs))


def _rungs(ground: Ground, prepared: DryRun, say: Say) -> Iterator[Rung]:
    request = prepared.request
    sharded, most = request.sharding != "none", min(request.num_processes, Devices.of_this_machine().total)
    context = request.context_length or context_length_of(prepared.model) or _USUAL_CONTEXT

    def with_sample(name: str, rows: int, characters: int) -> DryRun:
        path = ground.storage.root / f"{name}.jsonl"
        sample = write_sample(prepared.train_data, request.task_type, path, rows=rows, characters=characters)
        return replace(prepared, train_data=sample)

    # What is to be sharded may need all processes to be held at all.
    one_batch = with_sample("batch", EXAMPLES, context // 2)
    yield overfit(ground, _on(one_batch, most if sharded else 1), say)

    # The same data to evaluate on: the loss before and after is then over the same examples.
    steps = with_sample("steps", SAMPLE_STEPS * request.batch_size, context)
    steps = replace(steps, eval_data=steps.train_data)
    steps = with_request(steps, eval_data_path=steps.train_data.path, lora={**request.lora.model_dump(), "dropout": 0})
    alone: Climbed | None = None
    for processes in _doubling(request.num_processes):
        name = f"{processes} process{'es' * (processes > 1)}"
        here = _on(steps, processes)
        if processes > most:
            reason = f"this machine has {most} GPU{'s' * (most > 1)}"
            yield Rung(name=name, outcome="skipped", found=reason, processes=processes)
            continue
        if sharded and processes == 1 and not fits(here):
            yield Rung(name=name, outcome="skipped", found="one process can't hold the model", processes=1)
            continue
        say(f"{name}: some steps, and on from a checkpoint")
        climbed = climb_with(ground, here, name, alone)
        alone = climbed if processes == 1 else alone
        yield climbed.rung


def _as_folder(model: ModelRef, backend: Backend) -> ModelRef:
    """A registered model as the folder of its files: the store of a preflight has none registered."""
    if model.adapter_of:
        model = model.model_copy(update={"adapter_of": _as_folder(model.adapter_of, backend)})
    if model.kind != "registered":
        return model
    path = model.path or str(backend.models.open(model.name))
    return model.model_copy(update={"kind": "path", "path": path})


def _doubling(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _on(prepared: DryRun, processes: int) -> DryRun:
    sharding = prepared.request.sharding if processes > 1 else "none"
    return with_request(prepared, num_processes=processes, sharding=sharding)
