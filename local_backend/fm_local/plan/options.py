"""All ways to train a model that a request can ask for, and what a step takes by each: how many rows are computed at
once, and whether layers are computed again in the backward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, get_args

import torch

from fm.errors import RequestError, Unsupported
from fm.plans import Memory, PlanOption, PlanTask
from fm.request import Method, Sharding, TaskType, TrainRequest
from fm_local.plan.amounts import Amounts
from fm_local.plan.machine import Machine
from fm_local.plan.memory import Constants, Numbers, memory_of
from fm_local.plan.tracing import Step, Traced, trace
from fm_local.trainer import device

_CPU_PROCESS = 700 << 20
"""Bytes of a training process on a CPU before it holds a model: Python and the libraries."""
_ADAFACTOR = 0.01
"""Bytes of state for each parameter: means of rows and columns only."""
SPARE = 1.25
"""How much more than the plan says has to be there for activations to be kept: about as much as plans err at worst
(docs/plan.md). What is sharded has nothing to fall back on where memory runs out."""
_FEWER = 4
"""Rather than compute layers again, as many times fewer rows are computed at once: a pass through a layer is a third to
a half of its work, and a quarter of the usual tokens still fills a device."""


class Rows(NamedTuple):
    """How much of the data is computed at once."""

    at_once: int
    most: int
    """That would fit; 0 where not even one does, which is then tried."""
    checkpointing: bool
    """Whether layers are computed again in the backward pass."""


class Options:
    """What `task` could be trained with. What is traced once is kept."""

    def __init__(self, task: PlanTask, config: Any, machine: Machine, amounts: Amounts, *, bf16: bool) -> None:
        self._task, self._config, self._machine, self._amounts = task, config, machine, amounts
        self._bf16 = bf16
        self._frozen = 2.0 if bf16 else 4.0
        self._constants = Constants() if machine.kind == "cuda" else Constants(_CPU_PROCESS, 0.0)
        self._traced: dict[tuple[bool, int, bool], Traced] = {}

    def rows(self, usual: int) -> Rows:
        """For what was asked for: `usual`, or as many as fit.

        Raises:
            Unsupported: a step of the model can't be traced.
            RequestError: the method can't be applied to it.
        """
        most = self._most_rows(usual, checkpointing=False, spare=SPARE)
        if most >= usual / _FEWER:
            return Rows(min(usual, most), most, checkpointing=False)
        try:
            most, checkpointing = self._most_rows(usual, checkpointing=True), True
        except Unsupported:  # a family that can't compute a layer again
            most, checkpointing = self._most_rows(usual, checkpointing=False), False
        return Rows(max(1, min(usual, most)), most, checkpointing)

    def all(self, rows: Rows) -> tuple[PlanOption, ...]:
        """Each with so many rows at once; what can't be traced is left out, unless it was asked for."""
        found = []
        for choice in _choices(self._task.request):
            try:
                found.append(self._option(choice, rows))
            except (RequestError, Unsupported):
                if choice.method == self._task.request.method:
                    raise
        return tuple(found)

    def traced(self, method: Method, rows: int, *, checkpointing: bool) -> Traced:
        """A step of `rows` rows, each as long as the longest."""
        if self._task.model.kind == "preset" and method != "full":
            raise RequestError(
                f"{self._task.model.name} has random weights, on which an adapter has nothing to build",
                field="method", hint='plan it with method="full"',
            )
        key = method == "full", rows, checkpointing  # one in 4 bits computes what LoRA does
        if key not in self._traced:
            self._traced[key] = trace(self._config, self._step(method, rows, checkpointing))
        return self._traced[key]

    def _option(self, choice: TrainRequest, rows: Rows) -> PlanOption:
        usable, requested = self._machine.usable(choice.num_processes), choice == self._task.request
        checkpointing = requested and rows.checkpointing
        memory = self._memory(choice, rows.at_once, checkpointing=checkpointing)
        if not requested and SPARE * memory.reserved > usable:
            with suppress(Unsupported):
                memory, checkpointing = self._memory(choice, rows.at_once, checkpointing=True), True
        return PlanOption(
            method=choice.method, sharding=choice.sharding, processes=choice.num_processes, memory=memory,
            checkpointing=checkpointing, fits=memory.reserved <= usable, requested=requested,
        )

    def _memory(self, choice: TrainRequest, rows: int, *, checkpointing: bool) -> Memory:
        optimizer = 8.0 if choice.optimizer == "adamw" else _ADAFACTOR
        return memory_of(
            self.traced(choice.method, rows, checkpointing=checkpointing), choice.method, choice.sharding,
            Numbers(frozen=self._frozen, compute=self._frozen, optimizer=optimizer), devices=choice.num_processes,
            accumulating=True, framework=self._constants.framework, fragmentation=self._constants.fragmentation,
        )

    def _most_rows(self, usual: int, *, checkpointing: bool, spare: float = 1.0) -> int:
        """Rows of what was asked for that would fit if `spare` times as much was needed; 0 where not even one does."""
        request = self._task.request
        usable = self._machine.usable(request.num_processes) / spare
        memory = self._memory(request, usual, checkpointing=checkpointing)
        fixed = memory.allocated - memory.passing
        guess = int((usable - fixed) / max(1.0, (memory.reserved - fixed) / usual))
        if memory.reserved <= usable or usual == 1:
            return max(0, guess)
        # Not all that comes and goes is by the row: a second look, near to what fits, tells how much each row takes.
        guess = max(1, min(guess, usual - 1))
        there = self._memory(request, guess, checkpointing=checkpointing)
        each = max(1.0, (memory.reserved - there.reserved) / (usual - guess))
        return max(0, guess + math.floor((usable - there.reserved) / each))

    def _step(self, method: Method, rows: int, checkpointing: bool) -> Step:
        """How the trainer would compute the largest micro-batch."""
        task, amounts, bf16 = self._task, self._amounts, self._bf16
        lora = None if method == "full" else task.request.lora
        where = torch.device(self._machine.kind)
        masked = task.request.task_type is not TaskType.CONTINUED_PRETRAIN
        precision = "bf16" if bf16 else "fp32"
        return Step(
            rows, max(1, amounts.longest - 1), lora, torch.bfloat16 if bf16 and lora else torch.float32, autocast=bf16,
            by_products=device.prefers_plain_attention(where, precision, amounts.mean, amounts.longest),
            labels=amounts.trained_share if masked else 1.0, accumulating=True, checkpointing=checkpointing,
            shares_inputs=where.type == "cpu", rows_of_logits=device.rows_of_logits(where),
        )


def _choices(request: TrainRequest) -> Iterator[TrainRequest]:
    """`request` by every method and sharding with which it can be created; sharded over two processes at least."""
    for method, sharding in itertools.product(get_args(Method), get_args(Sharding)):
        processes = max(request.num_processes, 1 if sharding == "none" else 2)
        with suppress(RequestError):
            yield TrainRequest.build(
                request.model_dump() | {"method": method, "sharding": sharding, "num_processes": processes}
            )
