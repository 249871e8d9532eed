"""Tokens that a base lacks, or whose embeddings it never learned: their rows in embeddings and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fm.errors import Unsupported


@torch.no_grad()
def make_room(model: Any, size: int, *, added: Sequence[int] = ()) -> None:
    """Gives `model` a row for each of `size` tokens, in its embeddings and its head.

    The rows of the token ids `added`, which follow on those of the base's tokenizer, begin as the mean of that
    tokenizer's rows: then a new token is about as likely as any, where a random row may be likelier than all (Hewitt,
    2021).
    """
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    if not added:
        return
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            mean = layer.weight[: min(added)].mean(0, dtype=torch.float32)
            layer.weight[list(added)] = mean.to(layer.weight)


def trained_rows(model: Any, ids: Sequence[int]) -> dict[str, list[int]]:
    """What PEFT calls `trainable_token_indices`: the rows to train, by the name of the layer.

    A head that is tied to the embeddings follows them, and is not named.

    Raises:
        Unsupported: PEFT would drop the bias of this model's head.
    """
    names = {id(module): name for name, module in model.named_modules()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embeddings]
    if head is not None and not model.config.get_text_config().tie_word_embeddings:
        layers.append(head)
    if getattr(head, "bias", None) is not None:
        raise Unsupported(
            f"new_tokens can't be trained beside an adapter where the head has a bias, as in {type(model).__name__}",
            field="new_tokens",
            hint='use method="full"',
        )
    return {names[id(layer)]: sorted(ids) for layer in layers}


def tokens_needed(adapter_config: Mapping[str, Any]) -> int:
    """How many rows a base needs for the adapter: one more than the highest id of which it brings the row."""
    rows = adapter_config.get("trainable_token_indices") or {}
    lists = rows.values() if isinstance(rows, Mapping) else [rows]
    return 1 + max((max(ids) for ids in lists if ids), default=-1)
