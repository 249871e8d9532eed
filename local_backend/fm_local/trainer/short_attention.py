"""Causal attention over rows of short documents, written out as matrix products.

torch's fused kernel computes bf16 on a CPU without the hardware's bf16 products, and transformers' own written-out one
copies keys and values for each query head that shares them, and makes scores in fp32. For rows of some hundred tokens
this is quicker than both, and keeps one matrix of weights for the backward pass where transformers keeps three. What it
gives is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from fm_local.trainer.attention import Layout, register, window_mask
from fm_local.trainer.batching import ROW_TOKENS, Indices, unlabelled
from fm_local.trainer.loss import TokenLoss

SHORT = "fm_short"
_STRETCH = 128
"""Queries of a long document that are computed together: one of 600 tokens takes 0.8 times as long so, one of 1,000
half of it."""
_ALIKE = 12_000
"""Pairs of tokens that may be computed for nothing in order to compute a document together with longer ones: what its
products cost to begin alone."""
_PROBE = 2, 24
"""Rows and tokens of the probe."""


def attend_by_products(loss: TokenLoss, device: torch.device) -> None:
    """Lets a model on a CPU attend as it is written out here, if its logits are then those of transformers' own
    written-out attention, and else by that one: some models cap scores, add sinks or drop weights at random."""
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
    if v.shape != k.shape:
        raise ValueError("values of another size than keys")
    out: torch.Tensor = _Attention.apply(q, k, v, scaling, window, layout.documents())  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """softmax(scaling · q kᵀ + mask) v within each document; query heads that share a key are rows of one product with
    it, and documents of about one length are computed together.

    `q` is (tokens, heads, head size), and so is the result; `k` and `v` alike, with fewer heads if those are shared.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scaling: float,
        window: int | None,
        documents: tuple[int, ...],
    ) -> torch.Tensor:
        lay = lay_out(documents, q.shape[1], k.shape[1])
        # Scaled before the product, whose result is larger.
        queries = _taken(q, lay.queries).mul_(scaling)
        keys, values = _taken(k, lay.keys), _taken(v, lay.keys)
        out, kept = torch.empty_like(queries), []
        for group in lay.groups:
            for stretch in group.stretches:
                scores = torch.bmm(group.of(queries, stretch), group.seen(keys, stretch).transpose(1, 2))
                _hide_later(scores, stretch, window)
                kept.append(torch.softmax(scores, -1))
                torch.bmm(kept[-1], group.seen(values, stretch), out=group.of(out, stretch))
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.lay, ctx.scaling, ctx.shapes = lay, scaling, (q.shape, k.shape)
        return _taken(out, lay.places_of_queries).view(q.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        lay: _Lay = ctx.lay
        outer = _taken(gradient, lay.queries)
        outer.index_fill_(0, torch.from_numpy(lay.filling), 0.0)
        of_queries, of_keys, of_values = (torch.empty_like(x) for x in (queries, keys, values))
        left = iter(kept)
        for group in lay.groups:
            for_keys, for_values = [], []
            for stretch in group.stretches:
                weights, above = next(left), group.of(outer, stretch)
                of_weights = torch.bmm(above, group.seen(values, stretch).transpose(1, 2))
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                torch.bmm(of_scores, group.seen(keys, stretch), out=group.of(of_queries, stretch))
                for_keys.append(torch.bmm(of_scores.transpose(1, 2), group.of(queries, stretch)))
                for_values.append(torch.bmm(weights.transpose(1, 2), above))
            group.all_of(of_keys).copy_(_summed(for_keys))
            group.all_of(of_values).copy_(_summed(for_values))
        ours, shared = ctx.shapes
        of_q = _taken(of_queries.mul_(ctx.scaling), lay.places_of_queries).view(ours)
        of_k, of_v = (_taken(x, lay.places_of_keys).view(shared) for x in (of_keys, of_values))
        return of_q, of_k, of_v, None, None, None


class _Stretch(NamedTuple):
    """Queries of a group of documents that are computed together, with no more keys than the last of them sees."""

    begin: int
    """Its first place in each document."""
    end: int
    rows: slice
    """Where its queries are laid out."""


class _Group(NamedTuple):
    """Documents that are computed together, filled up to the longest's length."""

    products: int
    """For each document, as many as it has keys of a token."""
    length: int
    rows: slice
    """Where its keys are laid out."""
    stretches: list[_Stretch]

    def of(self, queries: torch.Tensor, stretch: _Stretch) -> torch.Tensor:
        """(products, query heads of a key * tokens, head size)."""
        return queries[stretch.rows].view(self.products, -1, queries.shape[1])

    def all_of(self, keys: torch.Tensor) -> torch.Tensor:
        """(products, tokens, head size)."""
        return keys[self.rows].view(self.products, self.length, -1)

    def seen(self, keys: torch.Tensor, stretch: _Stretch) -> torch.Tensor:
        """Those that `stretch` sees."""
        return self.all_of(keys)[:, : stretch.end]


class _Lay(NamedTuple):
    """How queries and keys, a row of numbers for each token and head, are laid out to be multiplied."""

    queries: Indices
    """Which one lies in each place."""
    places_of_queries: Indices
    """Where each lies."""
    keys: Indices
    places_of_keys: Indices
    filling: Indices
    """Places of queries that only fill up."""
    groups: list[_Group]


@lru_cache(maxsize=16)  # all layers of a piece ask for the same
def lay_out(documents: tuple[int, ...], heads: int, shared: int) -> _Lay:
    """`documents`: their lengths. Each of `shared` keys is that of as many query heads as the others."""
    queries, keys = _Rows(np.arange(heads).reshape(shared, -1)), _Rows(np.arange(shared)[:, None])
    starts, groups = np.cumsum([0, *documents]), []
    for first, last in _alike(documents):
        lengths = np.array(documents[first:last])[:, None]
        length = -int(lengths.max()) // ROW_TOKENS * -ROW_TOKENS
        places = np.arange(length)
        # (documents, length); what fills up repeats the last token, so that it is a finite number.
        tokens, own = starts[first:last, None] + np.minimum(places, lengths - 1), places < lengths
        stretches = [
            _Stretch(begin, end, queries.add(tokens[:, begin:end], own[:, begin:end]))
            for begin, end in _stretches(length)
        ]
        groups.append(_Group(len(lengths) * shared, length, keys.add(tokens, own), stretches))
    return _Lay(*queries.both_ways(), *keys.both_ways(), queries.filling(), groups)


class _Rows:
    """Which row of numbers lies in which place, for queries or keys."""

    def __init__(self, heads: Indices) -> None:
        """`heads`: their numbers, (keys of a token, heads for each)."""
        self._heads = heads
        self._taken: list[Indices] = []
        self._own: list[Any] = []
        self._count = 0

    def add(self, tokens: Indices, own: Any) -> slice:
        """Lays out all heads of these `tokens`, (documents, length), those that are their document's `own` and those
        that fill it up. Returns where."""
        taken = tokens[:, None, None] * self._heads.size + self._heads[..., None]
        self._taken.append(taken.ravel())
        self._own.append(np.broadcast_to(own[:, None, None], taken.shape).ravel())
        begin, self._count = self._count, self._count + taken.size
        return slice(begin, self._count)

    def both_ways(self) -> tuple[Indices, Indices]:
        """The row in each place, and the place of each row."""
        taken, places = np.concatenate(self._taken), np.flatnonzero(np.concatenate(self._own))
        found = np.empty(len(places), dtype=np.int64)
        found[taken[places]] = places
        return taken, found

    def filling(self) -> Indices:
        """The places that hold no document's own."""
        return np.flatnonzero(~np.concatenate(self._own))


def _alike(documents: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Documents that are computed together, of those that follow each other: the first, and the one behind the last."""
    first = longest = squares = 0
    for here, length in enumerate(documents):
        longest, squares = max(longest, length), squares + length**2
        if (here + 1 - first) * longest**2 - squares > _ALIKE * (here - first):
            yield first, here
            first, longest, squares = here, length, length**2
    yield first, len(documents)


def _stretches(length: int) -> list[tuple[int, int]]:
    """The queries of a document of this `length` that are computed together: all of a short one, else some at a
    time."""
    ends = [*range(_STRETCH, length - _STRETCH // 2 + 1, _STRETCH), length]
    return list(zip([0, *ends], ends, strict=False))


def _taken(x: torch.Tensor, rows: Indices) -> torch.Tensor:
    """Those `rows` of the numbers in `x`'s last dimension."""
    return x.reshape(-1, x.shape[-1]).index_select(0, torch.from_numpy(rows))


def _hide_later(scores: torch.Tensor, stretch: _Stretch, window: int | None) -> None:
    """Takes from each query what comes after it, and what lies before its window."""
    begin, end = stretch.begin, stretch.end
    scores = scores.view(-1, end - begin, end)
    if window is None or end <= window:
        scores[..., begin:] += window_mask(end - begin, None, scores)
    else:
        scores += window_mask(end, window, scores, begin)


def _summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of what the stretches give to the keys that they saw; the last has seen all."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[-1].float()
    for part in parts[:-1]:
        whole[:, : part.shape[1]] += part
    return whole


register(SHORT, _by_products)
