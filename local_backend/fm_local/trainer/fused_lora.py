"""LoRA's two products, its scaling and its sum as one operation.

PEFT computes ``result + lora_B(lora_A(x)) * scaling`` operation by operation. The scaling and the sum then read and
write the layer's whole output, and its gradient, three times more than the products themselves, in whose last step
both are free. What it gives is in docs/performance.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn


def fuse(peft_model: Any) -> None:
    """Makes the plain LoRA layers of `peft_model` compute so; those with DoRA stay as they are. Names and weights of
    the model stay, so saving and merging do too."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    for layer in peft_model.modules():
        # Embeddings, routers and the joined weights of experts are multiplied in other ways.
        plain = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), (nn.Linear, Conv1D))
        if plain and not layer.lora_variant:
            layer.forward = partial(_forward, layer)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    result = layer.base_layer(x)
    # bitsandbytes hands out a view of what its own function made, which autograd lets nobody write to.
    writable = result.clone() if result._is_view() else result
    return _AddLora.apply(writable, layer.lora_dropout["default"](x), a, b, layer.scaling["default"])  # type: ignore[no-any-return, no-untyped-call]


class _AddLora(torch.autograd.Function):
    """`result` + scaling · x Aᵀ Bᵀ, added in place, computed in `result`'s number format (Hu et al., LoRA, 2021)."""

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(result.dtype)
        narrow_a, narrow_b = a.to(result.dtype), (b * scaling).to(result.dtype)
        inner = rows @ narrow_a.T
        result.view(-1, result.shape[-1]).addmm_(inner, narrow_b.T)
        ctx.mark_dirty(result)
        ctx.save_for_backward(rows, inner, narrow_a, narrow_b)
        ctx.shape, ctx.dtype, ctx.scaling = x.shape, x.dtype, scaling
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, a, b = ctx.saved_tensors
        outer = gradient.reshape(-1, gradient.shape[-1])
        towards_a = outer @ b
        of_x = (towards_a @ a).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return gradient, of_x, (towards_a.T @ rows).float(), (outer.T @ inner).float() * ctx.scaling, None
