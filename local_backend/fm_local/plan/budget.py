"""How much a training computes at once, and keeps, on the machine that it runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fm.job import Job
from fm.layout import Storage
from fm.machine import main_memory
from fm.planning import kept_bytes, least_bytes, parameters_of, refuse_plan, refuse_weights, share_of
from fm.plans import PlanTask
from fm.types import ModelRef
from fm_local.plan.amounts import Amounts
from fm_local.prepare.shards import TokenDataset
from fm_local.trainer import device


class Budget(NamedTuple):
    """How a process makes do with the memory that it has."""

    max_tokens: int
    """Padded ones that are computed at once, unless one example alone has more."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept."""


def budget_of(job: Job) -> Budget:
    """What suits the device, or what the plan finds room for where its memory is short, but one example at least.

    Where memory runs out all the same, a trainer on a GPU halves it, unless it is sharded; on a CPU the system ends a
    process that takes too much, and the next attempt computes half as much at once, and keeps no activations.

    Raises:
        RequestError: it certainly doesn't fit here. A create is checked where it is made, which may be another machine.
    """
    planned = _planned(job)
    if torch.cuda.is_available():  # beside it, main memory runs out for other reasons
        return planned
    return Budget(max(1, planned.max_tokens >> job.starved), planned.checkpointing or job.starved > 0)


def _planned(job: Job) -> Budget:
    cuda = torch.cuda.is_available()
    usual = device.micro_batch_tokens(torch.device("cuda" if cuda else "cpu"))
    world, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else main_memory() // here
    # Those that there are, on however many machines: a request may go on with fewer than it asked for.
    now: dict[str, Any] = {"num_processes": world, "num_nodes": 1, "min_processes": None}
    request = job.request.model_copy(update=now | ({"sharding": "none"} if world == 1 else {}))
    model, counted = _base(job), _counted(job)
    # What has saved a checkpoint has been held somewhere.
    may_refuse = not (job.allow_oversize or job.resume_from)
    least = share_of(least_bytes(request, parameters_of(model) or 0), request)
    if may_refuse:
        refuse_weights(least, memory, model, request)
    kept = kept_bytes(model, max(usual, counted.longest))  # 0 where the model does not say its shape
    if kept <= (memory - least) / 8 and (kept or not cuda):  # planning takes seconds
        return Budget(usual)
    device.keep_few_products()
    # Tracing imports much that a plainly small training does without.
    from fm_local.plan.planning import make_plan

    task = PlanTask(
        request=request, model=model, train_data=job.train_data, device=None if cuda else "cpu",
        device_memory=memory if cuda else memory * world,
    )
    try:
        plan = make_plan(task, amounts=counted)
    except Exception:  # whatever a model says to tensors without values: it is trained all the same
        return Budget(usual, checkpointing=cuda)  # what does not fit a GPU after all may have no second try
    if may_refuse:
        refuse_plan(plan, model, request)
    return Budget(min(usual, max(1, plan.most_rows) * plan.micro_batch[1]), plan.requested.checkpointing)


def _base(job: Job) -> ModelRef:
    """The base as its files lie here."""
    prepared: dict[str, Any] = job.prepared or {}
    base = job.model.adapter_of or job.model
    path = prepared.get("base_path") or prepared.get("model_path") or base.path
    return base if base.kind == "preset" else ModelRef(kind="path", name=base.name, path=path)


def _counted(job: Job) -> Amounts:
    shard = (job.prepared or {})["train"]["shard"]
    data = TokenDataset.open(Storage(Path(job.storage_root)).shard(shard))
    tokens = int(data.lengths.sum())
    return Amounts(len(data), tokens, int(data.lengths.max()), int(data.trained.sum()) / tokens, "tokens as counted")
