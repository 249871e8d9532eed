"""Reading and writing tensors: safetensors only, because a pickle can run any code when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fm.errors import DiskFull, NotFound, RequestError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes `tensors` to `path`; same tensors, same bytes.

    Raises:
        DiskFull: no space is left.
    """
    try:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The library reports the operating system's error as text.
        if "os error 28" in str(error) or "os error 122" in str(error):
            raise DiskFull(
                f"no space left while writing {path}", hint="free some space, then resume the run"
            ) from error
        raise


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of all such files in a folder.

    Raises:
        RequestError: there are pickled weights only, or a file is damaged.
        NotFound: there are no weights.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not path.exists() or not files:
        refuse_pickles(path)
        raise NotFound(f"no weights at {path}", hint="give a .safetensors file, or a folder that has one")
    refuse_pickles(path)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise RequestError(
                f"{file} can't be read as safetensors: {error}", hint="copy or download it again"
            ) from None
    return tensors


def refuse_pickles(path: Path) -> None:
    """Raises `RequestError` if the weights at `path` exist in a pickled form only."""
    if path.is_dir():
        pickled = next((file for pattern in _PICKLES for file in path.glob(pattern)), None)
        if pickled is None or any(path.glob("*.safetensors")):
            return
    elif path.suffix == ".safetensors" or not path.exists():
        return
    else:
        pickled = path
    raise RequestError(
        f"{pickled} holds pickled weights, which can run code when opened",
        hint="convert them: load the model where you trust it, and save_pretrained(…) writes safetensors",
    )
