"""Which tokens hold a stretch of a text.

The tokenizer can say for each token which characters it holds, but keeping account of that costs a fifth of its speed.
Where tokens are bytes (byte-level BPE, as of GPT-2, Llama 3, Qwen and our presets), the widths of the tokens alone say
the same, if they add up to the text's.
"""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fm_local.prepare.rendering import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bounds = list[tuple[int, int]]
"""First token and the one behind the last, for each stretch."""


class ByteWidths:
    """How many bytes of a text each token stands for."""

    def __init__(self, widths: npt.NDArray[np.int64], *, composes: bool) -> None:
        self._widths = widths
        self._composes = composes

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ByteWidths | None:
        """The widths, or None for a tokenizer whose tokens are not bytes of the text as it stands."""
        from tokenizers.pre_tokenizers import ByteLevel

        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        normalizer = settings["normalizer"]
        steps = _steps(settings["pre_tokenizer"])
        byte_level = [step for step in steps if step["type"] == "ByteLevel"]
        if not byte_level or any(step["add_prefix_space"] for step in byte_level):
            return None
        if normalizer is not None and normalizer["type"] != "NFC":
            return None
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        alphabet = set(ByteLevel.alphabet())
        widths = np.zeros(len(tokenizer), np.int64)
        for token, number in tokenizer.get_vocab().items():
            if number in added:
                widths[number] = len(added[number].encode())
            elif alphabet.issuperset(token):
                widths[number] = len(token)
            else:
                return None
        return cls(widths, composes=normalizer is not None)

    def bounds(self, item: Rendered, ids: npt.NDArray[Any]) -> Bounds | None:
        """The tokens of each trained stretch; None where the widths don't add up, and the tokenizer has to say."""
        text = item.text
        plain = text.isascii()
        if not plain and self._composes and not unicodedata.is_normalized("NFC", text):
            return None
        ends = np.cumsum(self._widths[ids])
        if not len(ends) or ends[-1] != (len(text) if plain else len(text.encode())):
            return None
        edges = [edge for stretch in item.trained for edge in stretch]
        if not plain:
            edges = [len(text[:edge].encode()) for edge in edges]
        first = np.searchsorted(ends, edges[::2], "right").tolist()
        last = np.searchsorted(ends, edges[1::2], "left").tolist()
        return [(begin, end + 1) for begin, end in zip(first, last, strict=True)]


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def bounds_by_offsets(item: Rendered, encoding: Any) -> Bounds:
    """The tokens of each trained stretch, as the tokenizer itself has kept account of them."""
    found = []
    for start, end in item.trained:
        behind = _token_at(encoding, end, len(item.text))
        if behind < len(encoding) and encoding.token_to_chars(behind)[0] < end:
            behind += 1
        found.append((_token_at(encoding, start, len(item.text)), behind))
    return found


def _token_at(encoding: Any, at: int, length: int) -> int:
    """The token that holds character `at`, or the next one that is in a token: a normaliser may have removed it."""
    while at < length:
        token = encoding.char_to_token(at)
        if token is not None:
            return int(token)
        at += 1
    return len(encoding)
