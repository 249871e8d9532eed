"""The plan of a training: what it needs, how long it takes, what it costs, and what to try if it does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, get_args

import torch

from fm.display import human_bytes
from fm.duration import Unit
from fm.errors import RequestError, Unavailable, Unsupported
from fm.plans import Memory, Plan, PlanOption, PlanTask
from fm.presets import PRESETS
from fm.request import Method, Sharding, TaskType, TrainRequest
from fm.resolve import context_length_of
from fm.types import ModelRef
from fm_local.models.presets import config_of
from fm_local.plan.amounts import Amounts, amounts_of, steps_and_tokens
from fm_local.plan.layers import build_meta
from fm_local.plan.machine import Machine, find_machine
from fm_local.plan.memory import Constants, Numbers, memory_of
from fm_local.plan.tracing import DEPTHS, Step, Traced, trace
from fm_local.trainer import device

_DEFAULT_CONTEXT = 2048
_CPU_PROCESS = 700 << 20
"""Bytes of a training process on a CPU before it holds a model: Python and the libraries."""
_ADAFACTOR = 0.01
"""Bytes of state for each parameter: means of rows and columns only."""


def make_plan(task: PlanTask, *, amounts: Amounts | None = None) -> Plan:
    """Traces the model of `task` on fake tensors and adds up what its training needs. Loads no weights. `amounts`: of
    its data, where they are known; else they are estimated.

    Raises:
        Unavailable: the model's configuration is not on this machine, and the hub can't be asked.
        Unsupported: a step of the model can't be traced.
        RequestError: an unknown device, or an adapter that can't be put on the model.
    """
    request = task.request
    config = configuration_of(task.model)
    bf16 = _computes_in_bf16(task)
    machine = find_machine(task.device, task.device_memory, bf16=bf16, processes=request.num_processes)
    context = request.context_length or context_length_of(task.model) or _DEFAULT_CONTEXT
    amounts = amounts or amounts_of(task, context)
    share = -(-request.batch_size // request.num_processes)
    most_tokens = device.micro_batch_tokens(torch.device(machine.kind))
    rows = min(share, max(1, most_tokens // amounts.longest), amounts.examples)

    size = sum(parameter.numel() for parameter in build_meta(config, torch.float32).parameters())
    checkpointing = device.needs_activation_checkpointing(torch.device(machine.kind), size)
    frozen = 2.0 if bf16 else 4.0
    constants = Constants() if machine.kind == "cuda" else Constants(_CPU_PROCESS, 0.0)

    def look_at(rows: int) -> tuple[dict[Method, Traced], tuple[PlanOption, ...], PlanOption]:
        """A step of so many rows at once by each method, all ways to train, and the one that was asked for."""
        traced = _trace_methods(
            task, config, lambda method: _step(method, task, machine, bf16, rows, amounts, checkpointing)
        )

        def option_of(choice: TrainRequest) -> PlanOption:
            memory = memory_of(
                traced[choice.method], choice.method, choice.sharding, _numbers(task, frozen),
                devices=choice.num_processes, accumulating=True, framework=constants.framework,
                fragmentation=constants.fragmentation,
            )
            return PlanOption(
                method=choice.method, sharding=choice.sharding, processes=choice.num_processes, memory=memory,
                fits=memory.reserved <= machine.usable(choice.num_processes), requested=choice == request,
            )

        options = tuple(option_of(choice) for choice in _choices(request) if choice.method in traced)
        return traced, options, next(option for option in options if option.requested)

    usable = machine.usable(request.num_processes)
    traced, options, asked = look_at(rows)
    if asked.fits:
        most_rows = _most_rows(asked.memory, usable, rows)
    else:
        # As many as the trainer would compute at once then (`plan/budget.py`), which one row at a time tells.
        more, most_rows = asked.memory.reserved, 0
        if rows > 1:
            traced, options, asked = look_at(1)
            each = max(1.0, (more - asked.memory.reserved) / (rows - 1))
            most_rows = 1 + int((usable - asked.memory.reserved) / each) if asked.fits else 0
        rows = max(1, most_rows)
        if rows > 1:
            traced, options, asked = look_at(rows)
    chosen = traced[request.method]
    steps, tokens = steps_and_tokens(request, amounts)
    speed = _tokens_per_second(chosen, task, machine, amounts, config, checkpointed=checkpointing)
    if request.duration.unit is Unit.SECOND:
        seconds: float | None = float(request.duration.value)
        tokens = round(request.duration.value * speed) if speed else None
        steps = max(1, round(tokens / (amounts.mean * request.batch_size))) if tokens else None
    else:
        seconds = tokens / speed if speed and tokens else None
    price = task.price_per_hour
    devices = request.num_processes if machine.kind == "cuda" else 1
    layers = round(chosen.layers)
    return Plan(
        model=task.model.name,
        parameters=round(chosen.parameters),
        trained_parameters=round(chosen.trained),
        device=machine.name,
        device_memory=machine.memory,
        devices=devices,
        processes=request.num_processes,
        micro_batch=(rows, amounts.longest),
        most_rows=most_rows,
        options=options,
        examples=amounts.examples,
        tokens_per_epoch=amounts.tokens,
        steps=steps,
        tokens=tokens,
        tokens_per_second=speed,
        seconds=seconds,
        cost=None if price is None or seconds is None else price * devices * seconds / 3600,
        assumptions=(
            f"traced on fake tensors: all {layers} layers" if layers <= max(DEPTHS) else
            f"traced on fake tensors: {DEPTHS[0]} and {DEPTHS[1]} layers of each kind, extrapolated to all {layers}",
            amounts.assumption,
            f"computed in {'bf16' if bf16 else 'fp32'}; trained weights, their gradients and optimiser states in fp32; "
            f"activation checkpointing {'on' if checkpointing else 'off'}, as the trainer chooses here",
            f"a row for each example, padded to the longest; packed rows, where the trainer makes them, hold at most "
            f"{most_tokens:,} tokens instead of {rows * amounts.longest:,}",
            "gradients of an earlier micro-batch are held while the next one is computed"
            + f", and at most {human_bytes(device.WAITING_GRADIENT_BYTES)} of pieces computed side by side"
            * (machine.kind == "cpu"),
            "QLoRA: 4.127 bits a parameter in linear layers other than the head, and one of them unpacked at a time",
            "sharded, two layers, embeddings and head are whole at a time",
            machine.assumption,
            f"{human_bytes(machine.system)} of the memory are left to the system",
        ),
        advice=_advice(options, asked, traced, usable, rows, min(most_rows, max(1, most_tokens // amounts.longest))),
    )


def _choices(request: TrainRequest) -> Iterator[TrainRequest]:
    """`request` by every method and sharding with which it can be created; sharded over two processes at least."""
    for method, sharding in itertools.product(get_args(Method), get_args(Sharding)):
        processes = max(request.num_processes, 1 if sharding == "none" else 2)
        with suppress(RequestError):
            yield TrainRequest.build(
                request.model_dump() | {"method": method, "sharding": sharding, "num_processes": processes}
            )


def _trace_methods(
    task: PlanTask, config: Any, step_of: Callable[[Method], Step]
) -> dict[Method, Traced]:
    """A step of each method that the model can be planned with; of the others, only what was asked for is an error."""
    wanted: dict[Method, tuple[Method, ...]] = {"lora": ("lora", "qlora"), "full": ("full",)}
    if task.model.kind == "preset":
        del wanted["lora"]
        if task.request.method != "full":
            raise RequestError(
                f"{task.model.name} has random weights, on which an adapter has nothing to build", field="method",
                hint='plan it with method="full"',
            )
    traced: dict[Method, Traced] = {}
    for method, alike in wanted.items():
        try:
            traced |= dict.fromkeys(alike, trace(config, step_of(method)))
        except (RequestError, Unsupported):
            if task.request.method in alike:
                raise
    return traced


def configuration_of(model: ModelRef) -> Any:
    """The transformers configuration of `model`, or of an adapter's base. Only config.json is read.

    Raises:
        Unavailable: it is not here and can't be fetched.
    """
    from transformers import AutoConfig

    model = model.adapter_of or model
    if preset := PRESETS.get(model.name):
        return config_of(preset)
    try:
        return AutoConfig.from_pretrained(model.path or model.name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the configuration of {model.name} can't be read: {str(error).partition(chr(10))[0]}",
            hint="give a folder with its config.json as model=./path",
        ) from None


def _computes_in_bf16(task: PlanTask) -> bool:
    if task.request.precision == "auto" and task.device and task.device.lower() != "cpu":
        return True
    return device.pick_precision(task.request) == "bf16"


def _step(
    method: str, task: PlanTask, machine: Machine, bf16: bool, rows: int, amounts: Amounts, checkpointing: bool
) -> Step:
    """How the trainer would compute the largest micro-batch."""
    lora = None if method == "full" else task.request.lora
    where = torch.device(machine.kind)
    masked = task.request.task_type is not TaskType.CONTINUED_PRETRAIN
    return Step(
        rows, max(1, amounts.longest - 1), lora, torch.bfloat16 if bf16 and lora else torch.float32, autocast=bf16,
        by_products=device.prefers_plain_attention(where, "bf16" if bf16 else "fp32", amounts.mean, amounts.longest),
        labels=amounts.trained_share if masked else 1.0, accumulating=True,
        checkpointing=checkpointing, shares_inputs=where.type == "cpu",
        rows_of_logits=device.rows_of_logits(where),
    )


def _numbers(task: PlanTask, frozen: float) -> Numbers:
    return Numbers(frozen=frozen, compute=frozen, optimizer=8.0 if task.request.optimizer == "adamw" else _ADAFACTOR)


def _tokens_per_second(
    traced: Traced, task: PlanTask, machine: Machine, amounts: Amounts, config: Any, *, checkpointed: bool
) -> float | None:
    """Over all devices. FLOPs of a token: 2 for each parameter of a matrix product forward, 2 for the gradient of its
    input and, where it is trained, 2 for its own (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); causal attention
    2·layers·width·length forward and twice that backward."""
    if machine.flops is None:
        return None
    text = config.get_text_config()
    head = traced.vocabulary_size * traced.width * amounts.trained_share
    products = traced.active + head
    full = task.request.method == "full"
    passes = 6.0 if full else 4.0
    attention = 2.0 * traced.layers * traced.width * min(amounts.mean, getattr(text, "sliding_window", None) or 1e9)
    flops = passes * products + 3.0 * attention + (0.0 if full else 6.0 * traced.trained)
    if checkpointed:
        flops += 2.0 * traced.active + attention
    return machine.flops * task.request.num_processes / flops


def _most_rows(memory: Memory, usable: int, rows: int) -> int:
    fixed = memory.allocated - memory.passing
    return max(0, int((usable - fixed) / max(1.0, (memory.reserved - fixed) / rows)))


def _advice(
    options: tuple[PlanOption, ...], asked: PlanOption, traced: dict[Method, Traced], usable: int, rows: int, room: int
) -> tuple[str, ...]:
    """In the order in which an expert thinks. `room`: rows that would be computed at once if there were as many."""
    by_name = {(option.method, option.sharding): option for option in options}

    def fits(method: Method, sharding: Sharding) -> str:
        option = by_name[method, sharding]
        return f"{human_bytes(option.memory.reserved)}, {'fits' if option.fits else 'does not fit'}"

    advice = ["start with a small model; take a larger one when evaluation says so"]
    if lora := traced.get("lora"):
        share = lora.trained / max(1, lora.parameters)
        advice += [
            f"prefer LoRA ({fits('lora', 'none')}): it trains {share:.1%} as many weights",
            f"then QLoRA ({fits('qlora', 'none')})",
        ]
    method: Method = "lora" if lora else "full"
    name = "LoRA" if lora else "all weights"
    if sharded := by_name.get((method, "full")):
        advice += [
            f"then sharding over several devices ({name} over {sharded.processes}: {fits(method, 'full')})",
            f"then offload to main memory ({name} over {sharded.processes}: {fits(method, 'full-offload')})",
        ]
    if asked.fits and rows < room:
        advice.append(
            f"there is room: {room} rows could be computed at once, and are {rows}; raise batch_size up to "
            f"{room * asked.processes} if fewer, larger steps learn as well"
        )
    elif not asked.fits:
        fitting = [option for option in sorted(options, key=_rank) if option.fits]
        advice.append(
            f"what was asked for does not fit {human_bytes(usable)}: take "
            + (_as_parameters(fitting[0], asked) if fitting else "a smaller model")
        )
    return tuple(advice)


def _rank(option: PlanOption) -> tuple[bool, bool, int]:
    """The least is what an expert tries first: LoRA, QLoRA, then sharding, then offload."""
    return option.sharding == "full-offload", option.sharding != "none", get_args(Method).index(option.method)


def _as_parameters(option: PlanOption, asked: PlanOption) -> str:
    """What to write for `option` instead of what was `asked` for."""
    values = {"method": option.method, "sharding": option.sharding, "num_processes": option.processes}
    before = {"method": asked.method, "sharding": asked.sharding, "num_processes": asked.processes}
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if value != before[name])
