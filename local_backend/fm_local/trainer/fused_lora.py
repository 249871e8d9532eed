"""A frozen linear layer and the LoRA on it as one operation.

PEFT computes ``base(x) + lora_B(lora_A(x)) * scaling`` operation by operation. The scaling and the sum then read and
write the layer's whole output, and its gradient, three times more than the products themselves, in whose last step
both are free; and the two gradients of the input are one product's last step as well. What it gives is in
docs/performance.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from fm_local.models import nf4


def fuse_lora(peft_model: Any) -> None:
    """Makes the plain LoRA layers of `peft_model` compute so; those with DoRA stay as they are. Names and weights of
    the model stay, so saving and merging do too."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    for layer in peft_model.modules():
        # Embeddings, routers and the joined weights of experts are multiplied in other ways.
        plain = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), (nn.Linear, Conv1D))
        if plain and not layer.lora_variant:
            base = layer.base_layer
            # Other quantised layers are of classes of their own; dropout gives LoRA another input than the base.
            known = type(base) is nn.Linear or nf4.scales_of(base) is not None
            same_input = isinstance(layer.lora_dropout["default"], nn.Identity)
            layer.forward = partial(_linear_with_lora if known and same_input else _with_lora, layer)


def _linear_with_lora(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base = layer.base_layer
    scales = nf4.scales_of(base)
    if scales is not None and not torch.is_grad_enabled():
        return _with_lora(layer, x)  # bitsandbytes multiplies few rows, as in answering, without a whole matrix
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return _LinearWithLora.apply(x, base.weight, scales, base.bias, a, b, layer.scaling["default"])  # type: ignore[no-any-return, no-untyped-call]


def _with_lora(layer: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    result = layer.base_layer(x)
    # bitsandbytes hands out a view of what its own function made, which autograd lets nobody write to.
    writable = result.clone() if result._is_view() else result
    return _AddLora.apply(writable, layer.lora_dropout["default"](x), a, b, layer.scaling["default"])  # type: ignore[no-any-return, no-untyped-call]


class _LinearWithLora(torch.autograd.Function):
    """x Wᵀ + bias + scaling · x Aᵀ Bᵀ with frozen W and bias (Hu et al., LoRA, 2021), in autocast's number format, or
    in W's without it. Where W has `scales`, it is in 4 bits, and whole only while it is multiplied (QLoRA)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: Any | None,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        kind = x.device.type
        dense = nf4.dense(weight, scales)
        number = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dense.dtype
        rows, narrow = x.reshape(-1, x.shape[-1]).to(number), dense.to(number)
        narrow_a, narrow_b = a.to(number), (b * scaling).to(number)
        inner = rows @ narrow_a.T
        result = rows @ narrow.T if bias is None else torch.addmm(bias.to(number), rows, narrow.T)
        result.addmm_(inner, narrow_b.T)
        ctx.save_for_backward(rows, inner, weight, narrow_a, narrow_b)
        ctx.shape, ctx.dtype, ctx.scaling, ctx.scales = x.shape, x.dtype, scaling, scales
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        outer = gradient.reshape(-1, gradient.shape[-1])
        towards_a = outer @ b
        of_x = None
        if ctx.needs_input_grad[0]:
            dense = nf4.dense(weight, ctx.scales).to(outer.dtype)
            of_x = (outer @ dense).addmm_(towards_a, a).view(ctx.shape).to(ctx.dtype)
        of_a, of_b = (towards_a.T @ rows).float(), (outer.T @ inner).float() * ctx.scaling
        return of_x, None, None, None, of_a, of_b, None


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
