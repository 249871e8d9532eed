"""On what was measured: kinds of processors differ more than trainers do, and a name like "x86_64" tells none."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

_SIZE = 1024
_REPEATS = 20


def described(device: str, precision: str) -> dict[str, str | int | float]:
    """The processor or GPU, its cores, and what a core multiplies, with one thread, or the GPU: TFLOP/s of products of
    1,024 rows and columns on a CPU (8,192 on a GPU), the best of `_REPEATS`."""
    import torch

    cuda = device == "cuda"
    size = _SIZE * (8 if cuda else 1)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    took = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        one @ other
        if cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    tflops = 2 * size**3 / min(took) / 1e12
    return {"machine": _name(device), "cores": os.cpu_count() or 1, "product_tflops": round(tflops, 3)}


def folder_name(device: str) -> str:
    """The processor's or the GPU's name as that of a folder."""
    return re.sub("[^a-z0-9]+", "-", _name(device).lower()).strip("-")


def _name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else _processor()


def _processor() -> str:
    """Its name, with family and model where Linux tells them: some clouds name only the maker."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in cpuinfo.read_text().split("\n\n")[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']}, family {fields.get('cpu family')}, model {fields.get('model')}"
