"""Planning before a run is made: what is sent to the machine that trains, and what is refused without asking it.

The plan is made where the training would run, since only there the devices are known: in this process through
`fm_local`, or on a server, to which a `PlanTask` travels and a `Plan` comes back.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from fm.display import human_bytes
from fm.errors import RequestError
from fm.plans import Layout, Plan, PlanTask
from fm.presets import PRESETS

if TYPE_CHECKING:
    from fm.creation import DryRun
    from fm.request import TrainRequest
    from fm.types import ModelRef

_LAYOUTS: dict[str, Layout] = {
    "": "none", "none": "none", "ddp": "none", "offload": "offload", "full": "full_shard", "full_shard": "full_shard",
    "fsdp": "full_shard",
}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PLAINLY_SMALL = 1 << 30
"""Bytes of need below which no device is asked how much it has."""
_CERTAINLY = 1.25
"""How much more than the device holds the plan must say before a create is refused: its own error is below that."""


def layout_of(sharding: str | None) -> Layout:
    """The layout that `sharding` asks for.

    Raises:
        RequestError: there is none of that name.
    """
    name = (sharding or "").lower()
    if "offload" in name:
        return "offload"
    if name not in _LAYOUTS and "zero3" not in name and "fsdp" not in name:
        raise RequestError(
            f"sharding {sharding!r} can't be planned for", field="sharding", hint='write "full" or "full-offload"'
        )
    return _LAYOUTS.get(name, "full_shard")


def parse_bytes(value: float | str | None, *, field: str = "device_memory") -> int | None:
    """A number of bytes, or text such as "24GB" or "80 GiB".

    Raises:
        RequestError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)(i?)b?", value.strip().lower())
        if not match:
            raise RequestError(f"{field} {value!r} is no size", field=field, hint='write "24GB"')
        unit = 1024 ** " kmgt".index(match[2] or " ") if match[3] else _BYTES[match[2]]
        value = float(match[1]) * unit
    if value <= 0:
        raise RequestError(f"{field} must be above 0", field=field, hint='write "24GB"')
    return int(value)


def make_plan(
    prepared: DryRun,
    *,
    sharding: str | None = None,
    price_per_hour: float | None = None,
    device: str | None = None,
    device_memory: int | None = None,
) -> Plan:
    """The plan of what `fm.creation.prepare` has checked."""
    task = PlanTask(
        request=prepared.request, model=prepared.model, train_data=prepared.train_data,
        method=prepared.request.method, sharding=layout_of(sharding), device=device,
        device_memory=device_memory, price_per_hour=price_per_hour,
    )
    return prepared.machine.plan(task)


def refuse_oversize(prepared: DryRun, sharding: str | None) -> None:
    """Refuses what certainly fits no device of this machine.

    Bounds from the size of the weights alone come first: a plainly small model costs no time. Only what lies between
    the two bounds is traced.

    Raises:
        RequestError: says how much is needed, and what to try.
    """
    request, model = prepared.request, prepared.model
    size = parameters_of(model)
    if size is None:
        return
    least = least_bytes(request, size) / (request.num_processes if sharding else 1)
    if least * 8 < _PLAINLY_SMALL or (sharding and layout_of(sharding) == "offload"):
        return
    memory = _smallest_device()
    if least <= memory / 8:
        return
    need, what = least, "weights, gradients and optimiser states alone"
    if least <= memory:
        if not prepared.train_data.path:  # data that is not here yet can't be looked into
            return
        plan = make_plan(prepared, sharding=sharding)
        need, what = plan.requested.memory.reserved / _CERTAINLY, "a step"
        if need <= plan.device_memory:
            return
        need *= _CERTAINLY
    raise RequestError(
        f"training {model.name} with method={request.method!r} can't fit: {what} would take {human_bytes(need)} of a "
        f"device with {human_bytes(memory)}",
        field="model",
        hint="`ftctl plan` with the same parameters shows what would fit: a smaller model, LoRA, QLoRA, sharding, "
        "offload; allow_oversize=True tries it all the same",
    )


def least_bytes(request: TrainRequest, parameters: int) -> float:
    """Less than this no training of so many parameters takes, whatever its data."""
    if request.method == "full":
        return parameters * (16.0 if request.optimizer == "adamw" else 8.0)
    return parameters * (0.5 if request.method == "qlora" else 2.0)


def parameters_of(model: ModelRef) -> int | None:
    """Parameters that the base has at least, from its preset or the size of its weights, which may be in fp32; None
    where neither is here."""
    base = model.adapter_of or model
    if preset := PRESETS.get(base.name):
        layer = 4 * preset.hidden_size**2 + 3 * preset.hidden_size * preset.intermediate_size
        return preset.layers * layer + 2 * preset.vocab_size * preset.hidden_size
    files = Path(base.path).glob("*.safetensors") if base.path else ()
    return sum(file.stat().st_size for file in files) // 4 or None


def _smallest_device() -> int:
    """Bytes of the smallest GPU here, or of the main memory where there is none."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
        except subprocess.TimeoutExpired:
            text = ""
        if sizes := [int(line) << 20 for line in text.split() if line.isdigit()]:
            return min(sizes)
    return main_memory()


def main_memory() -> int:
    """Bytes of this machine's memory that its processes may use: a container may have less than the machine."""
    import psutil

    files = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return min([psutil.virtual_memory().total, *(int(text) for text in texts if text.isdigit())])
