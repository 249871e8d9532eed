"""The plan of a training: what it needs, how long it takes, what it costs, and what to try if it does not fit."""

from __future__ import annotations

from typing import Any, get_args

import torch

from fm.display import human_bytes
from fm.duration import Unit
from fm.errors import Unavailable
from fm.plans import Plan, PlanOption, PlanTask
from fm.presets import PRESETS
from fm.request import Method, Sharding
from fm.resolve import context_length_of
from fm.types import ModelRef
from fm_local.models.presets import config_of
from fm_local.plan.amounts import Amounts, amounts_of, steps_and_tokens
from fm_local.plan.machine import Machine, find_machine
from fm_local.plan.options import SPARE, Options
from fm_local.plan.tracing import DEPTHS, Traced
from fm_local.trainer import device

_DEFAULT_CONTEXT = 2048


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

    found = Options(task, config, machine, amounts, bf16=bf16)
    rows = found.rows(min(share, max(1, most_tokens // amounts.longest), amounts.examples))
    options = found.all(rows)
    chosen = found.traced(request.method, rows.at_once, checkpointing=rows.checkpointing)
    steps, tokens = steps_and_tokens(request, amounts)
    speed = _tokens_per_second(chosen, task, machine, amounts, config, checkpointed=rows.checkpointing)
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
        micro_batch=(rows.at_once, amounts.longest),
        most_rows=rows.most,
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
            f"computed in {'bf16' if bf16 else 'fp32'}; trained weights, their gradients and optimiser states in fp32",
            "activations are kept where a quarter more than that takes is there, and else computed again "
            "(checkpointed), as the trainer chooses here",
            f"a row for each example, padded to the longest; packed rows, where the trainer makes them, hold at most "
            f"{most_tokens:,} tokens instead of {rows.at_once * amounts.longest:,}",
            "gradients of an earlier micro-batch are held while the next one is computed"
            + f", and at most {human_bytes(device.WAITING_GRADIENT_BYTES)} of pieces computed side by side"
            * (machine.kind == "cpu"),
            "QLoRA: 4.127 bits a parameter in linear layers other than the head, and one of them unpacked at a time",
            "sharded, two layers, embeddings and head are whole at a time",
            machine.assumption,
            f"{human_bytes(machine.system)} of the memory are left to the system",
        ),
        advice=_advice(
            found, options, rows.at_once, min(rows.most, max(1, most_tokens // amounts.longest)),
            machine.usable(request.num_processes),
        ),
    )


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


def _advice(
    found: Options, options: tuple[PlanOption, ...], rows: int, room: int, usable: int
) -> tuple[str, ...]:
    """In the order in which an expert thinks. `room`: rows that would be computed at once if there were as many;
    `usable`: bytes that a process may take."""
    by_name = {(option.method, option.sharding): option for option in options}
    asked = next(option for option in options if option.requested)

    def fits(method: Method, sharding: Sharding) -> str:
        option = by_name[method, sharding]
        return f"{human_bytes(option.memory.reserved)}, {'fits' if option.fits else 'does not fit'}"

    advice = ["start with a small model; take a larger one when evaluation says so"]
    if lora := by_name.get(("lora", "none")):
        step = found.traced("lora", rows, checkpointing=lora.checkpointing)
        share = step.trained / max(1, step.parameters)
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
    if asked.fits and SPARE * asked.memory.reserved > usable and (rows == 1 or asked.sharding != "none"):
        advice.append(
            f"it is tight: {human_bytes(usable - asked.memory.reserved)} of {human_bytes(usable)} stay free, less than "
            "plans err by at worst, and a step can't go on in smaller pieces; if memory runs out, take a smaller "
            + ("batch_size or context_length" if rows > 1 else "context_length")
        )
    elif asked.fits and rows < room:
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
