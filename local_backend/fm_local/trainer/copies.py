"""Copies in autocast's number format, made once for all that use them.

Under autocast each piece of a step copies the trained matrices anew, and widens its gradient of each to fp32 before it
is added up; and layers that share an input copy it once each, and widen each its gradient of it. What it gives that
they share these copies is in docs/performance.md.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows
from torch import nn


class StepCopies:
    """In bf16, of those matrices of a model that one linear layer multiplies: neither of the head's, whose gradient is
    added up block by block, nor of those that lie elsewhere too, as an embedding."""

    def __init__(self, model: Any | None) -> None:
        """`model`: one that is trained whole. None: nothing is copied."""
        modules = list(model.modules()) if model else []
        uses = Counter(id(p) for module in modules for p in module.parameters(recurse=False))
        alone: list[Any] = [m for m in modules if type(m) is nn.Linear and uses[id(m.weight)] == 1]
        self._layers = [layer for layer in alone if model and layer is not model.get_output_embeddings()]
        self._copies: list[torch.Tensor] = []

    @contextmanager
    def lent(self) -> Iterator[Mapping[torch.Tensor, torch.Tensor]]:
        """Lets the layers compute with copies of what their weights are now; gives the copy of each."""
        weights: list[nn.Parameter] = [layer.weight for layer in self._layers]
        self._copies = self._copies or [torch.empty_like(w, dtype=torch.bfloat16, requires_grad=True) for w in weights]
        try:
            for layer, weight, copy in zip(self._layers, weights, self._copies, strict=True):
                copy.detach().copy_(weight.detach())
                layer._parameters["weight"] = copy
            yield dict(zip(weights, self._copies, strict=True))
        finally:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer._parameters["weight"] = weight


def share_inputs(model: nn.Module) -> None:
    """Makes linear layers of `model` that are called with the same input share its copy."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(_copy_of(x), layer.weight, layer.bias)


class _Made(NamedTuple):
    """A copy, and of what it is one. Neither is kept alive by this."""

    copy: Any
    of: Any
    version: int
    with_gradient: bool


class _Last(threading.local):
    made: _Made | None = None


_last = _Last()
"""What this thread copied last: layers with the same input are called one after the other."""


def _copy_of(x: torch.Tensor) -> torch.Tensor:
    kind, last, with_gradient = x.device.type, _last.made, torch.is_grad_enabled()
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.get_autocast_dtype(kind):
        return x
    if last and last.of() is x and (last.version, last.with_gradient) == (x._version, with_gradient):
        copy: torch.Tensor | None = last.copy()
        if copy is not None:
            return copy
    copy = x.to(torch.get_autocast_dtype(kind))
    _last.made = _Made(weakref.ref(copy), weakref.ref(x), x._version, with_gradient)
    return copy
