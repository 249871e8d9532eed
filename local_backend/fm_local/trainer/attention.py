"""Attention over packed rows: what there is on a device, torch's own FlashAttention for rows of several documents, and
on a CPU one document after the other.

flash-attn is a package that has to be compiled and is seldom there; torch has brought the same kernel along since 2.10.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

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


def candidates(device: torch.device, present: str) -> list[str]:
    """Implementations of attention for packed rows on `device`, by transformers' names, the quickest first. `present`
    is the one that the model has."""
    if device.type == "cpu":
        return [present] if present not in DENSE else [BY_DOCUMENT, present]
    if device.type != "cuda":
        return [present]
    flash = ["flash_attention_2"] if is_flash_attn_2_available() else []
    return list(dict.fromkeys([*flash, VARLEN, "flex_attention", present]))


Block = tuple[int, int, int]
"""Documents of one length, one behind the other: where the first begins, how many they are, and their length."""


def blocks_of(rows: int, length: int, boundaries: torch.Tensor | None) -> list[Block]:
    """The documents of `rows` of `length` tokens: of a single row those between `boundaries`, else each is one."""
    if boundaries is None:
        return [(0, rows, length)]
    found: list[Block] = []
    for start, end in itertools.pairwise(boundaries.tolist()):
        first, count, alike = found[-1] if found else (start, 0, 0)
        if alike == end - start:
            found[-1] = (first, count + 1, alike)
        else:
            found.append((start, 1, end - start))
    return found


def refuse_more(
    names: Sequence[str], asked: Mapping[str, Any], dropout: float, attention_mask: torch.Tensor | None
) -> None:
    """Raises ValueError if a model asks of its attention one of `names`, dropout or a mask, of which it does none."""
    found = [name for name in names if asked.get(name) is not None]
    if dropout or found or attention_mask is not None:
        raise ValueError(f"no {', '.join(found) or ('dropout' if dropout else 'mask')} in attention of this kind")


def varlen_attention(
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
    """Causal attention in which each document sees itself alone; as transformers calls it.

    Args:
        query: (rows, heads, length, head size); `key` and `value` alike, with fewer heads if those are shared.
        sliding_window: tokens that each sees, itself included; None for all before it.
        cu_seq_lens_q: (documents + 1,) int32: where each begins in the row; None where each row is one document.

    Returns:
        (rows, length, heads, head size), and None for the weights.

    Raises:
        ValueError: the model asks of its attention what the kernel can't do.
    """
    refuse_more(("softcap", "s_aux", "position_bias"), more, dropout, attention_mask)
    rows, heads, length, _ = query.shape
    if key.shape[2] != length:
        # One token at a time, behind a cache.
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)  # type: ignore[no-any-return]
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
        max_length_q = length
    half = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    # Rotation leaves queries in fp32 under autocast, which the kernel does not take.
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(half) for x in (query, key, value))
    out: Any = varlen.varlen_attn(
        q,
        k,
        v,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=key.shape[1] != heads,
    )
    return out.view(rows, length, heads, -1), None


def attention_by_document(
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
    """As `varlen_attention`, by torch's kernel for one document after the other: for a CPU."""
    refuse_more(("softcap", "s_aux", "position_bias"), more, dropout, attention_mask)
    rows, heads, length, size = query.shape
    if key.shape[2] != length:
        # One token at a time, behind a cache.
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)  # type: ignore[no-any-return]
    tokens = [x.transpose(1, 2).flatten(0, 1).to(value.dtype) for x in (query, key, value)]
    found = []
    for start, count, alike in blocks_of(rows, length, cu_seq_lens_q):
        block = slice(start, start + count * alike)
        q, k, v = (x[block].view(count, alike, -1, size).transpose(1, 2) for x in tokens)
        far = sliding_window is not None and alike > sliding_window
        mask = window_mask(alike, sliding_window, q) if far else None
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=scaling, enable_gqa=key.shape[1] != heads
        )
        found.append(out.transpose(1, 2).reshape(-1, heads, size))
    return torch.cat(found).view(rows, length, heads, size), None


def window_mask(length: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """(length, length): 0 where a token (row) sees another, itself included, and minus infinity elsewhere."""
    later = like.new_full((length, length), float("-inf"))
    mask = later.triu(1)
    return mask if window is None else mask + later.tril(-window)


# They need no mask of (length, length) and none is made: the documents' boundaries say it all.
for name, attend in ((VARLEN, varlen_attention), (BY_DOCUMENT, attention_by_document)):
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, flash_attention_mask)
