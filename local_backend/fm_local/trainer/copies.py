"""Copies in autocast's number format, made once for all that use them.

Under autocast each piece of a step copies the trained matrices anew, and widens its gradient of each to fp32 before it
is added up; and layers that share an input copy it once each, and widen each its gradient of it. What it gives that
they share these copies is in docs/performance.md.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.weak import TensorWeakRef


class StepCopies:
    """Of the weights of linear layers, in bf16; but not of the head's, whose gradient is added up block by block, nor
    of weights that are used elsewhere too, as an embedding's."""

    def __init__(self, model: Any | None) -> None:
        """`model`: one that is trained whole. None: nothing is copied."""
        self._layers: list[Any] = []
        self._copies: list[torch.Tensor] = []
        if model is None:
            return
        uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        head = model.get_output_embeddings()
        alone = (layer for layer in _linear_layers(model) if uses[id(layer.weight)] == 1)
        self._layers += [layer for layer in alone if layer is not head]

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
    for layer in _linear_layers(model):
        layer.forward = partial(_forward, layer)


def _linear_layers(model: nn.Module) -> list[Any]:
    """Plain ones: what is derived from them computes otherwise."""
    return [module for module in model.modules() if type(module) is nn.Linear]


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(_copy_of(x), layer.weight, layer.bias)


class _Made(NamedTuple):
    """A copy, and of what it is one. Neither is kept alive by this."""

    copy: TensorWeakRef
    of: TensorWeakRef
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
    _last.made = _Made(TensorWeakRef(copy), TensorWeakRef(x), x._version, with_gradient)
    return copy
