"""The device that is planned for: how much it holds, and how quickly it multiplies."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from fm.errors import RequestError
from fm.machine import main_memory

GIB = 2**30
_GPUS = {
    "B200": (2250, 180), "H200": (989, 141), "H100": (989, 80), "A100": (312, 80), "MI300X": (1307, 192),
    "L40S": (362, 48), "A6000": (155, 48), "RTX 4090": (165, 24), "RTX 3090": (71, 24),
    "A10": (125, 24), "L4": (121, 24),
}
"""Dense bf16 TFLOP/s and GB of memory, from the makers' data sheets."""
_UTILISATION_GPU = 0.4
_UTILISATION_CPU = 0.5
"""Model FLOPs as a share of what the device can do at most."""
_CONTEXT = GIB // 2
"""Of a GPU's memory, what the driver takes for each process."""
_SYSTEM = GIB
"""Of main memory, what everything else takes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One device of those that train."""

    name: str
    kind: str
    """ "cuda" or "cpu"."""
    memory: int
    """Bytes that it has."""
    flops: float | None
    """Floating-point operations per second that a training gets out of it."""
    assumption: str

    @property
    def system(self) -> int:
        """Bytes that are left to the system, or to a GPU's driver."""
        return _SYSTEM if self.kind == "cpu" else _CONTEXT

    def usable(self, processes: int) -> int:
        """Bytes that each of so many processes may take. Those on a CPU share it, and each has a GPU of its own."""
        left = max(0, self.memory - self.system)
        return left // processes if self.kind == "cpu" else left


def find_machine(name: str | None, memory: int | None, *, bf16: bool, processes: int) -> Machine:
    """The device `name`, or the one here.

    Raises:
        RequestError: an unknown GPU whose memory is not given.
    """
    if name is None and torch.cuda.is_available():
        # The largest: a machine may have a small one besides, for a display.
        properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        found = max(properties, key=lambda device: int(device.total_memory))
        return _gpu(found.name, memory or int(found.total_memory))
    if name is None or name.lower() == "cpu":
        memory = memory or main_memory()
        measured = _measure_cpu(bf16)
        return Machine(
            "CPU", "cpu", memory, measured * _UTILISATION_CPU / processes,
            f"matrix products measured here at {measured / 1e9:,.0f} GFLOP/s, of which training reaches "
            f"{_UTILISATION_CPU:.0%}; all processes share {memory / 1e9:.1f} GB",
        )
    known = _known(name)
    if memory is None and known is None:
        raise RequestError(
            f"there is no data sheet for device {name!r} here", field="device",
            hint=f"pass device_memory=… too, or one of {', '.join(_GPUS)}, cpu",
        )
    return _gpu(name, memory or (known[1] * 10**9 if known else 0))


def _gpu(name: str, memory: int) -> Machine:
    known = _known(name)
    text = "speed not known: no data sheet of this GPU here"
    if known:
        text = f"{known[0]} TFLOP/s in bf16 (data sheet), of which training reaches {_UTILISATION_GPU:.0%}"
    flops = known[0] * 1e12 * _UTILISATION_GPU if known else None
    return Machine(name, "cuda", memory, flops, text)


def _known(name: str) -> tuple[int, int] | None:
    """TFLOP/s and GB of the GPU that `name` has the words of; its size too where the name says it (A100-40GB)."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    found = next((value for part, value in _GPUS.items() if part.lower().removeprefix("rtx ") in words), None)
    size = re.search(r"\b([0-9]+) ?GB\b", name, re.IGNORECASE)
    return (found[0], int(size[1])) if found and size else found


def _measure_cpu(bf16: bool) -> float:
    """FLOP/s of a matrix product large enough to be limited by arithmetic; takes some tenths of a second."""
    size = 768
    one = torch.ones(size, size, dtype=torch.bfloat16 if bf16 else torch.float32)
    one @ one
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        one @ one
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
