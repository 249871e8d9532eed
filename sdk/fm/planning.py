"""Planning before a run is made: what is sent to the machine that trains, and what is refused without asking it.

The plan is made where the training would run, since only there the devices are known: in this process through
`fm_local`, or on a server, to which a `PlanTask` travels and a `Plan` comes back.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fm.agent.devices import Devices
from fm.display import human_bytes
from fm.errors import MissingExtra, RequestError, Unavailable, Unsupported
from fm.machine import main_memory
from fm.plans import Plan, PlanTask
from fm.presets import PRESETS
from fm.request import WHOLE_WEIGHTS, TaskType, what_takes_less
from fm.resolve import context_length_of, shape_of

if TYPE_CHECKING:
    from fm.creation import DryRun
    from fm.request import TrainRequest
    from fm.types import ModelRef

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
READ_ROWS = 2000
"""The first rows of the data, by which plans and bounds are made."""
_PLAINLY_SMALL = 1 << 30
"""Bytes of need below which no device is asked how much it has."""
_CERTAINLY = 1.25
"""How much more than the device holds the plan must say before a training is refused: plans err by less, but for a
few (docs/plan.md)."""


def parse_bytes(value: float | str | None, *, field: str = "device_memory") -> int | None:
    """A number of bytes, or text such as "24GB" or "80 GiB".

    Raises:
        RequestError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([kmgt]?)(i?)b?", value.strip().lower())
        if not match:
            raise RequestError(f"{field} {value!r} is no size", field=field, hint='write "24GB"')
        unit = 1024 ** " kmgt".index(match[2] or " ") if match[3] else _BYTES[match[2]]
        value = float(match[1]) * unit
    if not 0 < value < math.inf:
        raise RequestError(f"{field} must be a number above 0", field=field, hint='write "24GB"')
    return int(value)


def make_plan(
    prepared: DryRun,
    *,
    price_per_hour: float | None = None,
    device: str | None = None,
    device_memory: int | None = None,
) -> Plan:
    """The plan of what `fm.creation.prepare` has checked."""
    task = PlanTask(
        request=prepared.request, model=prepared.model, train_data=prepared.train_data, device=device,
        device_memory=device_memory, price_per_hour=price_per_hour,
    )
    return prepared.machine.plan(task)


def refuse_oversize(prepared: DryRun) -> None:
    """Refuses what certainly fits no device of this machine, computed one example at a time.

    Bounds from the size of the weights and of the longest possible example come first: what is plainly small costs no
    time. Only what lies near the memory is traced, and where no plan can be made nothing is certain.

    Raises:
        RequestError: says how much is needed, and what to try.
    """
    request, model = prepared.request, prepared.model
    bounds = _bounds(prepared)
    if bounds is None or _are_plainly_small(bounds):
        return
    least, kept = bounds
    memory = _memory_of_a_process(request.num_processes)
    least = share_of(least, request)
    if max(least, kept) <= memory / 8:
        return
    refuse_weights(least, memory, model, request)
    if not prepared.train_data.path:  # data that is not here yet can't be looked into
        return
    try:
        plan = make_plan(prepared)
    except (Unsupported, Unavailable, MissingExtra):
        return
    refuse_plan(plan, model, request)


def refuse_weights(least: float, memory: int, model: ModelRef, request: TrainRequest) -> None:
    """Refuses what needs at `least` more than the `memory` of a process.

    Raises:
        RequestError: says how much is needed, and what to try.
    """
    if least > memory:
        raise _oversize(model, request, "weights, gradients and optimiser states alone", least, memory)


def refuse_plan(plan: Plan, model: ModelRef, request: TrainRequest) -> None:
    """Refuses what certainly doesn't fit by its plan.

    Raises:
        RequestError: says how much is needed, and what to try.
    """
    need = plan.requested.memory.reserved
    if not plan.fits and need / _CERTAINLY > plan.process_memory:
        what = f"a step with one example of {plan.micro_batch[1]:,} tokens"
        raise _oversize(model, request, what, need, plan.process_memory)


def _oversize(model: ModelRef, request: TrainRequest, what: str, need: float, memory: int) -> RequestError:
    return RequestError(
        f"training {model.name} with method={request.method!r} can't fit: {what} would take {human_bytes(need)} of the "
        f"{human_bytes(memory)} that a process has here",
        field="model",
        hint=f"{what_takes_less(request)}; allow_oversize=True tries it all the same",
    )


def is_plainly_small(prepared: DryRun) -> bool:
    """Whether any device holds a training of the base with all its parts, and its longest example."""
    bounds = _bounds(prepared)
    return bounds is not None and _are_plainly_small(bounds)


def _are_plainly_small(bounds: tuple[float, float]) -> bool:
    return 8 * max(bounds) < _PLAINLY_SMALL


def _bounds(prepared: DryRun) -> tuple[float, float] | None:
    """Bytes of the training with all its parts, and of what its longest example keeps; None where the base's size is
    not known."""
    size = parameters_of(prepared.model)
    return None if size is None else (least_bytes(prepared.request, size), _kept_of_an_example(prepared))


def _kept_of_an_example(prepared: DryRun) -> float:
    """Of the longest that there may be, by what its first rows hold where that matters; a character is a token at
    most."""
    request, data = prepared.request, prepared.train_data
    most = min(request.context_length or context_length_of(prepared.model) or math.inf, data.bytes)
    if 8 * kept_bytes(prepared.model, most) >= _PLAINLY_SMALL and request.task_type is not TaskType.CONTINUED_PRETRAIN:
        if not data.path:
            return 0.0
        from fm.data import locate, read_examples

        examples = read_examples(locate(data.path, field="train_data_path"), request.task_type)
        most = min(most, max((example.characters for _, _, example in islice(examples, READ_ROWS)), default=0))
    return kept_bytes(prepared.model, most)


def kept_bytes(model: ModelRef, tokens: float) -> float:
    """About how many bytes the base keeps of so many tokens for the backward pass: 34 for each token, layer and number
    of its width (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1). 0 where it does not say its shape."""
    width, layers = shape_of(model) or (0, 0)
    return 34.0 * tokens * width * layers


def least_bytes(request: TrainRequest, parameters: int) -> float:
    """Less than this no training of so many parameters takes, whatever its data."""
    if request.method == "full" and request.sharding == "zero2":
        return parameters * (4.0 + 12.0 / request.num_processes)
    if request.method == "full":
        return parameters * (16.0 if request.optimizer == "adamw" else 8.0)
    return parameters * (0.5 if request.method == "qlora" else 2.0)


def share_of(least: float, request: TrainRequest) -> float:
    """What one process's device holds of `least` bytes, which sharding parts where it parts the weights, and offload
    keeps elsewhere."""
    if request.sharding == "full-offload":
        return 0.0
    return least if request.sharding in WHOLE_WEIGHTS else least / request.num_processes


def parameters_of(model: ModelRef) -> int | None:
    """Parameters of the base, from its preset or the headers of its weights; None where neither is here."""
    base = model.adapter_of or model
    if preset := PRESETS.get(base.name):
        layer = 4 * preset.hidden_size**2 + 3 * preset.hidden_size * preset.intermediate_size
        return preset.layers * layer + preset.vocab_size * preset.hidden_size
    files = Path(base.path).glob("*.safetensors") if base.path else ()
    return sum(map(_parameters_in, files)) or None


def _parameters_in(file: Path) -> int:
    """Elements of all tensors of a safetensors file, whose header is JSON behind its length; 0 where it is damaged:
    the check stage says what is wrong with it."""
    with file.open("rb") as stream:
        try:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except (ValueError, OverflowError, MemoryError):
            return 0
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _memory_of_a_process(processes: int) -> int:
    """Bytes of the largest GPU that is visible here, or a process's share of the main memory where there is none."""
    visible = Devices.of_this_machine().indices
    if visible:
        command = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
        except (subprocess.TimeoutExpired, FileNotFoundError):
            text = ""
        rows = [line.split(",") for line in text.splitlines()]
        if sizes := [int(size) << 20 for index, size in rows if int(index) in visible]:
            return max(sizes)
    return main_memory() // processes
