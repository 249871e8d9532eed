"""Root-mean-square norms as one operation each way.

transformers writes them out, and autograd then walks through every square, mean, root and product of the whole layer's
input once more, in fp32, and keeps most of them: its backward pass takes ten times as long as its forward pass. Written
by hand it needs the input and one number for each token. What it gives is in docs/performance.md.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

_PROBE_ROWS = 3


def fuse_norms(model: nn.Module) -> None:
    """Makes those norms of `model` compute so that give the same this way. Which ones do is found by trying: families
    differ in what they scale by and in when they round, and a few put other things under the same name."""
    alike: dict[type[nn.Module], bool] = {}
    for module in model.modules():
        scale, epsilon = getattr(module, "weight", None), _epsilon_of(module)
        if epsilon is None or not isinstance(scale, torch.Tensor) or scale.dim() != 1 or len(list(module.children())):
            continue
        kind = type(module)
        if kind not in alike:
            alike[kind] = _gives_the_same(module, epsilon)
        if alike[kind]:
            module.forward = partial(_forward, module, epsilon)


def _epsilon_of(module: nn.Module) -> float | None:
    if "RMSNorm" not in type(module).__name__:
        return None
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


@torch.no_grad()
def _gives_the_same(module: nn.Module, epsilon: float) -> bool:
    """Whether a `module` with other values is what is computed here, in both number formats that reach it."""
    module = copy.deepcopy(module).to_empty(device="cpu")  # the model itself may have no values yet
    scale: Any = module.weight
    noise = torch.Generator().manual_seed(0)
    scale.copy_(1 + torch.rand(scale.shape, generator=noise))  # scales of 1 would hide whether 1 is added to them
    trial = torch.randn(_PROBE_ROWS, len(scale), generator=noise)
    for x in (trial, trial.bfloat16()):
        try:
            theirs = module(x)
        except TypeError:  # one that is called with more than its input
            return False
        ours = _RootMeanSquare.apply(x, scale, epsilon)  # type: ignore[no-untyped-call]
        near = 1e-5 if ours.dtype == torch.float32 else 1e-2
        if ours.dtype != theirs.dtype or not torch.allclose(ours, theirs, rtol=near, atol=near):
            return False
    return True


def _forward(module: Any, epsilon: float, x: torch.Tensor) -> torch.Tensor:
    return _RootMeanSquare.apply(x, module.weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]


class _RootMeanSquare(torch.autograd.Function):
    """scale · x / √(mean x² + ε) over the last dimension (Zhang and Sennrich, 2019), computed in fp32, rounded to `x`'s
    number format before the scaling, as Llama does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        normed: torch.Tensor = (wide * inverse).to(x.dtype)
        return normed * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = (gradient.float() * normed.to(x.dtype)).flatten(0, -2).sum(0).to(scale.dtype)
        of_normed = (gradient * scale).float()
        along = torch.linalg.vecdot(of_normed, normed).unsqueeze_(-1).div_(-x.shape[-1])
        return of_normed.addcmul_(normed, along).mul_(inverse).to(x.dtype), of_scale, None
