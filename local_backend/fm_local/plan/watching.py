"""Watching what PyTorch does: which storages live, what is kept for the backward pass, which operations run."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all storages that are made within it, until they are freed."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.series: list[tuple[int, int]] = []
        """After each operation, the bytes alive and how many of them are logits."""
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._bytes = 0
        self._logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            # Two thirds of all calls: autograd asks each gradient. No need to go through the other modes for it.
            self.series.append((self._bytes, self._logits))
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in _tensors((args, tuple((kwargs or {}).values())))}
        for tensor in _tensors((result,)):
            if tensor.untyped_storage()._cdata not in given:
                self._follow(tensor)
        self.series.append((self._bytes, self._logits))
        return result

    def most(self, begin: int, end: int | None = None) -> tuple[int, int]:
        """Of operations `begin` to `end`, the most bytes alive, and the logits among them."""
        return max(self.series[begin:end], default=(0, 0))

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        logits = size if _is_logits(tensor, self.vocabulary) else 0

        def forget(_: object) -> None:
            del self._alive[key]
            self._bytes -= size
            self._logits -= logits

        self._alive[key] = weakref.ref(storage, forget)
        self._bytes += size
        self._logits += logits


def count_saved(loss_module: nn.Module, run: Callable[[], Any], vocabulary: int) -> tuple[int, int, Any]:
    """Bytes that `run` leaves to the backward pass (each storage once, parameters excluded), those of them with one
    element for each word of the vocabulary, and what `run` returns."""
    parameters = {p.untyped_storage()._cdata for p in loss_module.parameters()}
    # Held as weak references: what a checkpointed layer frees again is not saved.
    seen: dict[int, tuple[weakref.ref[torch.UntypedStorage], bool]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            seen[storage._cdata] = weakref.ref(storage), _is_logits(tensor, vocabulary)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    alive = [(storage.nbytes(), logits) for reference, logits in seen.values() if (storage := reference()) is not None]
    return sum(size for size, _ in alive), sum(size for size, logits in alive if logits), result


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace != "prim":
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class GroupedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets fake tensors of any format through an expert layer: torch's rule for the shape of a grouped product knows
    bf16 only, while its kernels on CPU take fp32 as well. To be entered right within the fake mode."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten._grouped_mm.default or args[0].dtype is torch.bfloat16:
            return func(*args, **kwargs)
        return func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **kwargs).to(args[0].dtype)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those among what an operation takes or gives, also in lists; far quicker than torch's trees."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _is_logits(tensor: torch.Tensor, vocabulary: int) -> bool:
    return tensor.dim() > 1 and tensor.shape[-1] == vocabulary
