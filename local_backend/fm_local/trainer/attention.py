"""Attention over packed rows: what there is on a device, torch's own FlashAttention for rows of several documents, and
on a CPU one document after the other.

flash-attn is a package that has to be compiled and is seldom there; torch has brought the same kernel along since 2.10,
and windows in it since 2.11.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask
from transformers.utils import is_flash_attn_2_available

VARLEN = "fm_varlen"
BY_DOCUMENT = "fm_by_document"
DENSE = ("sdpa", "eager")
"""Those that compute, or at least mask, every pair of tokens of a row: quadratic in the row and not in the document."""
_ASKED_FOR_GROUPS = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
"""Whether torch's FlashAttention has to be told that queries share keys; before 2.12 it took them so unasked."""


def candidates(device: torch.device, present: str) -> list[str]:
    """Implementations of attention for packed rows on `device`, by transformers' names, the quickest first. `present`
    is the one that the model has."""
    if device.type == "cpu":
        return [present] if present not in DENSE else [BY_DOCUMENT, present]
    if device.type != "cuda":
        return [present]
    flash = ["flash_attention_2"] if is_flash_attn_2_available() else []
    return list(dict.fromkeys([*flash, VARLEN, "flex_attention", present]))


class Layout(NamedTuple):
    """Where documents lie among tokens that follow each other: of rows each is one, unless there are boundaries."""

    rows: int
    length: int
    """Of each row."""
    boundaries: torch.Tensor | None
    """(documents + 1,) int32: where each begins in a single row, and the end."""
    longest: int
    """Tokens of the longest document."""

    def documents(self) -> tuple[int, ...]:
        """Tokens of each document."""
        if self.boundaries is None:
            return (self.length,) * self.rows
        return tuple(self.boundaries.diff().tolist())


class Kernel(Protocol):
    """Causal attention in which each document sees itself alone."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float, window: int | None, /
    ) -> torch.Tensor:
        """Of `q`, (tokens, heads, head size), and `k` and `v` alike, with fewer heads if those are shared; gives one
        as `q`. `window`: tokens that each sees, itself included; None for all before it."""


def register(name: str, kernel: Kernel) -> None:
    """Gives transformers an attention of this `name`. It raises ValueError where a model asks for what no `Kernel`
    does: dropout, a mask, capped scores and the like."""

    def attend(
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
        max_length_q: int | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        asked = [each for each in ("softcap", "s_aux", "position_bias") if more.get(each) is not None]
        if dropout or asked or attention_mask is not None:
            raise ValueError(f"no {', '.join(asked) or ('dropout' if dropout else 'mask')} in attention of this kind")
        rows, _, length, size = query.shape
        if key.shape[2] != length:
            # One token at a time, behind a cache.
            return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)  # type: ignore[no-any-return]
        kind = query.device.type
        number = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        # Rotation leaves queries in fp32 under autocast, which kernels do not take.
        q, k, v = (x.transpose(1, 2).flatten(0, 1).to(number) for x in (query, key, value))
        layout = Layout(rows, length, cu_seq_lens_q, max_length_q or length)
        out = kernel(q, k, v, layout, size**-0.5 if scaling is None else scaling, sliding_window)
        return out.view(rows, length, *out.shape[1:]), None

    AttentionInterface.register(name, attend)
    # No mask of (length, length) is made: under causal attention no token sees the padding to its right, and of packed
    # rows the boundaries say it all.
    AttentionMaskInterface.register(name, flash_attention_mask)


def _by_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float, window: int | None
) -> torch.Tensor:
    """torch's FlashAttention, for a GPU."""
    begins = layout.boundaries
    if begins is None:
        begins = torch.arange(0, len(q) + 1, layout.length, dtype=torch.int32, device=q.device)
    groups: dict[str, Any] = {"enable_gqa": k.shape[1] != q.shape[1]} if _ASKED_FOR_GROUPS else {}
    out: Any = varlen.varlen_attn(
        q,
        k,
        v,
        begins,
        begins,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **groups,
    )
    return cast("torch.Tensor", out)


def _by_document(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float, window: int | None
) -> torch.Tensor:
    """torch's kernel for one document after the other, or for those of one length that follow each other, for a CPU."""
    found, start = [], 0
    for length, alike in itertools.groupby(layout.documents()):
        count = len(list(alike))
        end = start + count * length
        queries, keys, values = (x[start:end].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        mask = window_mask(length, window, q) if window is not None and length > window else None
        out = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, scale=scaling, enable_gqa=k.shape[1] != q.shape[1]
        )
        found.append(out.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(found)


def window_mask(length: int, window: int | None, like: torch.Tensor, begin: int = 0) -> torch.Tensor:
    """(length - begin, length): 0 where a token (row, from the one at `begin` on) sees another, itself included, and
    minus infinity elsewhere."""
    later = like.new_full((length - begin, length), float("-inf"))
    mask = later.triu(begin + 1)
    return mask if window is None else mask + later.tril(begin - window)


register(VARLEN, _by_varlen)
register(BY_DOCUMENT, _by_document)
