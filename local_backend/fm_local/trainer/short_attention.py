"""Causal attention over rows of short documents, written out as matrix products.

torch's fused kernel computes bf16 on a CPU without the hardware's bf16 products, and transformers' own written-out one
copies keys and values for each query head that shares them, and makes scores in fp32. For rows of some hundred tokens
this is quicker than both, and keeps one matrix of weights for the backward pass where transformers keeps three. What it
gives is in docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from fm_local.trainer.attention import refuse_more
from fm_local.trainer.batching import unlabelled
from fm_local.trainer.loss import TokenLoss

SHORT = "fm_short"
_PROBE = 2, 24
"""Rows and tokens of the probe."""


def attend_by_products(loss: TokenLoss, device: torch.device) -> None:
    """Lets the model attend as it is written out here, if its logits are then those of transformers' own written-out
    attention, and else by that one: some models cap scores, add sinks or drop weights at random."""
    model = loss.language_model
    ids = torch.arange(_PROBE[0] * _PROBE[1], device=device).view(_PROBE) % model.config.get_text_config().vocab_size
    batch = unlabelled(ids)
    was_training = model.training
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            theirs = loss.eval().logits(batch).float()
            model.set_attn_implementation(SHORT)
            loss.train().logits(batch)  # refuses what only a training asks for
            ours = loss.eval().logits(batch).float()
        # bf16 rounds by 0.01 of the logits' size.
        same = float((ours - theirs).norm() / theirs.norm()) < 0.03
    except (ValueError, RuntimeError):
        same = False
    finally:
        loss.train(was_training)
    if not same:
        model.set_attn_implementation("eager")


def short_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it.

    Args:
        query: (rows, heads, length, head size); `key` and `value` alike, with fewer heads if those are shared.
        scaling: of the scores; one by the root of the head size unless given.
        sliding_window: tokens that each sees, itself included; None for all before it.

    Returns:
        (rows, length, heads, head size), and None for the weights.

    Raises:
        ValueError: the model asks of its attention what is not done here.
    """
    refuse_more(("softcap", "s_aux", "position_bias", "cu_seq_lens_q"), more, dropout, attention_mask)
    if key.shape[2] != query.shape[2]:
        # One token at a time, behind a cache.
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)  # type: ignore[no-any-return]
    kind = query.device.type
    number = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Scaled before the product, whose result is larger.
    out = _Attention.apply((query * scaling).to(number), key.to(number), value.to(number), sliding_window)  # type: ignore[no-untyped-call]
    return out, None


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ + mask) v; query heads that share a key are rows of one product with it."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        rows, heads, length, size = q.shape
        grouped = rows * k.shape[1], -1, size
        q, k, v = q.reshape(grouped), k.reshape(grouped), v.reshape(grouped)
        scores = torch.bmm(q, k.transpose(1, 2))
        scores.view(-1, length, length).add_(_mask(length, window, q))
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads = heads
        return torch.bmm(weights, v).view(rows, heads, length, size).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        rows, length, heads, size = gradient.shape
        outer = gradient.transpose(1, 2).reshape(q.shape)
        of_weights = torch.bmm(outer, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_q, of_k = torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q)
        of_v = torch.bmm(weights.transpose(1, 2), outer)
        shared = rows, -1, length, size
        return of_q.view(rows, heads, length, size), of_k.view(shared), of_v.view(shared), None


def _mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(length, length): 0 where a token (row) sees another, itself included, and minus infinity elsewhere."""
    later = like.new_full((length, length), float("-inf"))
    mask = later.triu(1)
    return mask if window is None else mask + later.tril(-window)


AttentionInterface.register(SHORT, short_attention)
# None for rows that are padded on the right: no token sees the padding under causal attention.
AttentionMaskInterface.register(SHORT, flash_attention_mask)
