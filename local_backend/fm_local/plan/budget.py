"""How many tokens a training computes at once on the machine that it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fm.errors import FMError
from fm.job import Job
from fm.layout import Storage
from fm.machine import main_memory
from fm.planning import kept_bytes
from fm.plans import PlanTask
from fm.types import ModelRef
from fm_local.plan.amounts import Amounts
from fm_local.prepare.shards import TokenDataset
from fm_local.trainer import device


def tokens_at_once(job: Job) -> int:
    """What suits the device, or what the plan finds room for where its memory is short, but one example at least.

    Where memory runs out all the same, a GPU's trainer halves it; on a CPU the system ends a process that takes too
    much, and there is nothing left to go on with.
    """
    cuda = torch.cuda.is_available()
    usual = device.micro_batch_tokens(torch.device("cuda" if cuda else "cpu"))
    memory = (
        torch.cuda.get_device_properties(0).total_memory if cuda else main_memory() // job.request.num_processes
    )
    model = _base(job)
    if kept_bytes(model, usual) <= memory / 8:  # planning takes seconds
        return usual
    # Tracing needs much that only planning does, and a plainly small model none of it.
    from fm_local.plan.planning import make_plan

    try:
        plan = make_plan(PlanTask(request=job.request, model=model, train_data=job.train_data), amounts=_counted(job))
    except FMError:
        return usual
    return min(usual, max(1, plan.most_rows) * plan.micro_batch[1])


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
