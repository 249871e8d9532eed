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

from fm_local.trainer.attention import Block, blocks_of, refuse_more, window_mask
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
    cu_seq_lens_q: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it.

    Args:
        query: (rows, heads, length, head size); `key` and `value` alike, with fewer heads if those are shared.
        scaling: of the scores; one by the root of the head size unless given.
        sliding_window: tokens that each sees, itself included; None for all before it.
        cu_seq_lens_q: (documents + 1,) int32: where each begins in the row; None where each row is one document.

    Returns:
        (rows, length, heads, head size), and None for the weights.

    Raises:
        ValueError: the model asks of its attention what is not done here.
    """
    refuse_more(("softcap", "s_aux", "position_bias"), more, dropout, attention_mask)
    rows, _, length, _ = query.shape
    if key.shape[2] != length:
        # One token at a time, behind a cache.
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)  # type: ignore[no-any-return]
    kind = query.device.type
    number = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    blocks = blocks_of(rows, length, cu_seq_lens_q)
    # Scaled before the product, whose result is larger.
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(number) for x in (query * scaling, key, value))
    out: Any = _Attention.apply(q, k, v, sliding_window, blocks)  # type: ignore[no-untyped-call]
    return out.view(rows, length, *out.shape[1:]), None


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ + mask) v within each document; query heads that share a key are rows of one product with it.

    `q` is (tokens, heads, head size), and so is the result; `k` and `v` alike, with fewer heads if those are shared.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, blocks: list[Block]
    ) -> torch.Tensor:
        out, kept = torch.empty_like(q, memory_format=torch.contiguous_format), []
        for block in blocks:
            length = block[2]
            parts = [_by_key_head(x, block, k.shape[1]) for x in (q, k, v)]
            scores = torch.bmm(parts[0], parts[1].transpose(1, 2))
            scores.view(-1, length, length).add_(window_mask(length, window, q))
            weights = torch.softmax(scores, -1)
            _put(out, block, torch.bmm(weights, parts[2]))
            kept += [*parts, weights]
        ctx.save_for_backward(*kept)
        ctx.blocks, ctx.shapes = blocks, (q.shape, k.shape)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ours, shared = ctx.shapes
        of = [gradient.new_empty(shape) for shape in (ours, shared, shared)]
        saved = ctx.saved_tensors
        for number, block in enumerate(ctx.blocks):
            q, k, v, weights = saved[4 * number : 4 * number + 4]
            outer = _by_key_head(gradient, block, shared[1])
            of_weights = torch.bmm(outer, v.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            _put(of[0], block, torch.bmm(of_scores, k))
            _put(of[1], block, torch.bmm(of_scores.transpose(1, 2), q))
            _put(of[2], block, torch.bmm(weights.transpose(1, 2), outer))
        return *of, None, None


def _by_key_head(x: torch.Tensor, block: Block, shared: int) -> torch.Tensor:
    """(documents * `shared` heads, heads for each * length, head size) of the documents in `block`."""
    start, count, length = block
    part = x[start : start + count * length].view(count, length, *x.shape[1:])
    return part.transpose(1, 2).reshape(count * shared, -1, x.shape[2])


def _put(x: torch.Tensor, block: Block, part: torch.Tensor) -> None:
    """The reverse of `_by_key_head`."""
    start, count, length = block
    place = x[start : start + count * length].view(count, length, *x.shape[1:])
    place.copy_(part.view(count, -1, length, x.shape[2]).transpose(1, 2))


AttentionInterface.register(SHORT, short_attention)
# None for rows that are padded on the right: no token sees the padding under causal attention.
AttentionMaskInterface.register(SHORT, flash_attention_mask)
