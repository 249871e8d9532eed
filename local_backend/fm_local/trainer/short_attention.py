"""Causal attention over rows of short documents, written out as matrix products.

torch's fused kernel computes bf16 on a CPU without the hardware's bf16 products, and transformers' own written-out one
copies keys and values for each query head that shares them, and makes scores in fp32. For rows of some hundred tokens
this is quicker than both, and keeps one matrix of weights for the backward pass where transformers keeps three. What it
gives is in docs/performance.md.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from fm_local.trainer.attention import Block, Layout, register, window_mask
from fm_local.trainer.batching import unlabelled
from fm_local.trainer.loss import TokenLoss

SHORT = "fm_short"
_STRETCH = 128
"""Queries of a long document that are computed together: one of 600 tokens takes 0.8 times as long so, one of 1,000
half of it."""
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


def _by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float, window: int | None
) -> torch.Tensor:
    # Scaled before the product, whose result is larger.
    out: torch.Tensor = _Attention.apply(q * scaling, k, v, window, layout.blocks())  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ + mask) v within each document; query heads that share a key are rows of one product with it.

    `q` is (tokens, heads, head size), and so is the result; `k` and `v` alike, with fewer heads if those are shared.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, blocks: list[Block]
    ) -> torch.Tensor:
        shared = k.shape[1]
        out, kept = torch.empty_like(q, memory_format=torch.contiguous_format), []
        for block in blocks:
            mask = window_mask(block[2], window, q)
            keys, values = _by_key_head(k, block, shared), _by_key_head(v, block, shared)
            kept += [keys, values]
            for begin, end in _stretches(block):
                queries = _by_key_head(q, block, shared, begin, end)
                scores = torch.bmm(queries, keys[:, :end].transpose(1, 2))
                scores.view(-1, end - begin, end).add_(mask[begin:end, :end])
                weights = torch.softmax(scores, -1)
                _put(out, block, torch.bmm(weights, values[:, :end]), begin, end)
                kept += [queries, weights]
        ctx.save_for_backward(*kept)
        ctx.blocks, ctx.shapes = blocks, (q.shape, k.shape)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ours, shared = ctx.shapes
        of_q, of_k, of_v = (gradient.new_empty(shape) for shape in (ours, shared, shared))
        saved = iter(ctx.saved_tensors)
        for block in ctx.blocks:
            keys, values = next(saved), next(saved)
            of_keys, of_values = [], []
            for begin, end in _stretches(block):
                queries, weights = next(saved), next(saved)
                outer = _by_key_head(gradient, block, shared[1], begin, end)
                of_weights = torch.bmm(outer, values[:, :end].transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                _put(of_q, block, torch.bmm(of_scores, keys[:, :end]), begin, end)
                of_keys.append(torch.bmm(of_scores.transpose(1, 2), queries))
                of_values.append(torch.bmm(weights.transpose(1, 2), outer))
            _put(of_k, block, _summed(of_keys))
            _put(of_v, block, _summed(of_values))
        return of_q, of_k, of_v, None, None


def _stretches(block: Block) -> list[tuple[int, int]]:
    """The queries of a block's documents that are computed together: all of a short document, else some at a time, each
    stretch with no more keys than its last token sees."""
    length = block[2]
    count = max(1, round(length / _STRETCH))
    return list(itertools.pairwise([length * n // count for n in range(count + 1)]))


def _by_key_head(x: torch.Tensor, block: Block, shared: int, begin: int = 0, end: int | None = None) -> torch.Tensor:
    """(documents * `shared` heads, heads for each * tokens, head size): the tokens from `begin` to `end` of each of the
    documents in `block`."""
    start, count, length = block
    part = x[start : start + count * length].view(count, length, *x.shape[1:])[:, begin:end]
    return part.transpose(1, 2).reshape(count * shared, -1, x.shape[2])


def _put(x: torch.Tensor, block: Block, part: torch.Tensor, begin: int = 0, end: int | None = None) -> None:
    """The reverse of `_by_key_head`."""
    start, count, length = block
    place = x[start : start + count * length].view(count, length, *x.shape[1:])[:, begin:end]
    place.copy_(part.view(count, x.shape[1], -1, x.shape[2]).transpose(1, 2))


def _summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of what the stretches give to the keys that they saw; the last has seen all."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[-1].float()
    for part in parts[:-1]:
        whole[:, : part.shape[1]] += part
    return whole


register(SHORT, _by_products)
