"""The machine: which device and number format, how many tokens at once, and the same result every time."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import sys
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, InitProcessGroupKwargs

from fm.errors import MissingExtra, Unsupported
from fm.layout import StageFolder
from fm.request import TrainRequest

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy", "ftctl")
_PATIENCE = timedelta(hours=6)
"""What processes wait for each other: while the first saves, or answers prompts, the others have nothing to do, and
NCCL by itself would give up after ten minutes. What hangs is noticed by the agent."""
_TRACKER_MODULES = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboard"}


def open_accelerator(request: TrainRequest, folder: StageFolder) -> Accelerator:
    """The accelerator for this process: alone, or one of several if torchrun or `accelerate launch` started it.

    Raises:
        MissingExtra: a tracker that the request names is not installed.
        Unsupported: its precision is bf16, which the GPU here does not compute in.
    """
    for tracker in request.trackers:
        if importlib.util.find_spec(_TRACKER_MODULES[tracker]) is None:
            raise MissingExtra(f"tracker {tracker!r} is not installed here", extra="track")
    keep_few_products()
    precision = pick_precision(request)
    if precision == "bf16" and torch.cuda.is_available() and not _computes_bf16():
        raise Unsupported(
            f"{torch.cuda.get_device_name()} does not compute in bf16", field="precision",
            hint='leave precision at "auto", which takes fp32 there',
        )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # What is offloaded is summed over the processes in main memory, where NCCL can't.
    both = {"backend": "cuda:nccl,cpu:gloo"} if several and torch.cuda.is_available() else {}
    return Accelerator(
        # Without being told, accelerate overlooks that there are several processes where there is no GPU.
        cpu=True if several and not torch.cuda.is_available() else None,
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=list(request.trackers) or None,
        project_dir=folder.trackers,
        # Buffers hold nothing that training changes, and ranks make unequal numbers of micro-batches.
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_PATIENCE, **both),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            # Else it would keep a copy of each layer that ZeRO 3 has gathered until the end of the forward pass.
            AutocastKwargs(cache_enabled=request.sharding != "zero3"),
        ],
    )


def pick_precision(request: TrainRequest) -> str:
    """ "bf16" or "fp32": as asked, or bf16 where the machine multiplies it in hardware (1.7 to 2.4 times fp32's speed
    on a CPU with AVX512-BF16)."""
    if request.precision != "auto":
        return request.precision
    if torch.cuda.is_available():
        return "bf16" if _computes_bf16() else "fp32"
    if torch.backends.mps.is_available():
        return "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _computes_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def keep_few_products() -> None:
    """Lets torch keep ready 16 compiled products of matrices in each thread, with what each has allocated, unless the
    environment says otherwise. By default these are 1,024, as many as oneDNN keeps behind it for all threads: a fifth
    of a small training's memory on a CPU, for no time that could be measured (docs/performance.md). It counts for
    threads that have multiplied nothing yet."""
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")


def make_deterministic(device: torch.device) -> None:
    """The same inputs give the same bits, for a given thread count. On CPU this is free; on a GPU it slows attention
    down, so there only what costs nothing is asked for."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = False


def micro_batch_tokens(device: torch.device) -> int:
    """Padded tokens that are computed at once; with long examples a single one may exceed it. On a CPU 1,024 and 2,048
    are equally fast (`docs/performance.md`), so there it bounds memory."""
    return 16384 if device.type == "cuda" else 2048


def rows_of_logits(device: torch.device) -> int | None:
    """Rows of logits that are made at once; None: as many as fit. On a CPU more than 256 are no quicker, and take a
    tenth of a small training's memory (docs/performance.md)."""
    return 256 if device.type == "cpu" else None


WAITING_GRADIENT_BYTES = 256 << 20
"""What gradients of pieces computed side by side may take until they are added up (`trainer/lanes.py`)."""


def prefers_plain_attention(device: torch.device, precision: str, mean_length: float, longest: int) -> bool:
    """Whether attention is quicker written out as matrix products. On a CPU torch's fused kernel computes bf16 without
    the hardware's bf16 products: 0.77 to 0.85 times the whole step's speed at 32 to 128 tokens, 0.90 to 0.94 times on
    skewed lengths of 98 on average (`docs/performance.md`). Written out it needs memory for the length squared, of the
    longest example too: 2 MB for each head and layer at 1,024 tokens, 128 MB at 8,192."""
    return device.type == "cpu" and precision == "bf16" and mean_length <= 256 and longest <= 1024


def peak_gib(device: torch.device) -> float:
    """The most memory used so far: the device's where it has its own, else the process's. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
