"""What is trained in the comparison: data, a model of random weights, and what every contender is told alike."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = 1024
"""Tokens at which examples are cut: TRL's default."""
SKIPPED_STEPS = 2
"""First steps that no contender's clock counts: allocations and kernels' first choices."""
LEARNING: dict[str, Any] = {"rates": {"lora": 2e-3, "full": 1e-3, "qlora": 2e-3}, "betas": (0.9, 0.95), "clip": 1.0}
"""What decides on learning is the same for all: rate, linear decay, AdamW's betas, clipping, effective batch."""
LORA = {"rank": 16, "alpha": 32.0}
"""All linear layers, no dropout."""


@dataclass(frozen=True)
class Size:
    """A Llama: its shape, on how many examples it is trained, and on how many it is judged."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    examples: int
    held_out: int
    dtype: str = "float32"
    batch: int = 16
    """Examples of an optimiser step: what ftctl does unless told otherwise; on a GPU so many that it is not Python that
    is measured."""


SIZES = {
    # Matrix products are 4 in 5 of the time of a dense step on two cores (docs/performance.md), as in larger models.
    "cpu": Size(384, 1024, 8, 6, 2, 4096, 800, 48),
    "cpu-large": Size(768, 2048, 12, 12, 4, 4096, 800, 32),
    "cpu-128k": Size(384, 1024, 8, 6, 2, 128_256, 800, 16),  # where the head is 4 in 5 of the products
    "tiny": Size(64, 128, 2, 2, 1, 512, 96, 16),
    "1b": Size(2048, 8192, 16, 32, 8, 128_256, 12_800, 160, "bfloat16", 128),
    "8b": Size(4096, 14336, 32, 32, 8, 128_256, 6400, 96, "bfloat16", 128),
}
"""Of examples there are 50 batches or a multiple: Hugging Face's trainer groups by length within pieces of so many. All
of them are trained, once, since a piece begins with its longest: its first steps say little of the rest.

1b and 8b have the shapes of Llama 3; their tokenizer has fewer tokens than they have embeddings."""
TOKENIZER_TOKENS = 16_384
"""The most that is learned from the standard library's docstrings."""
DATA = ("docstrings", "even")


def write_rows(kind: str, folder: Path, size: Size, examples: int) -> None:
    """Writes ``train.jsonl`` and ``heldout.jsonl``: rows of ``prompt`` and ``response``, shuffled by a fixed seed."""
    import stdlib_data

    objects = stdlib_data.documented_objects()
    for name, held_out, count in (("train", False, examples), ("heldout", True, size.held_out)):
        side = [item for item in objects if item.held_out is held_out]
        random.Random(17).shuffle(side)
        made = _questions(side) if kind == "docstrings" else _windows(side)
        rows = [row for row, _ in zip(made, range(count), strict=False)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _questions(objects: list[Any]) -> Iterator[dict[str, str]]:
    """What each object is for, and its whole docstring: from a line to pages."""
    while True:  # the standard library is small; a large model sees it again
        for item in objects:
            yield {"prompt": f"What does {item.name} do?\n", "response": item.docstring}


def _windows(objects: list[Any], words: int = 64) -> Iterator[dict[str, str]]:
    """As many words of the docstrings' text in each row, about 100 tokens: lengths that leave nothing to arrange."""
    while True:
        text = " ".join(item.docstring for item in objects).split()
        for start in range(0, len(text) - words, words):
            yield {"prompt": "Continue.\n", "response": " ".join(text[start : start + words])}


def precision_of(device: str) -> str:
    """What all compute in, "bf16" or "fp32", because it is the faster: bf16 where the hardware multiplies it."""
    import torch

    return "bf16" if device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def make_tokenizer(folder: Path, size: Size) -> None:
    """A byte-level BPE learned from the standard library's docstrings, saved in `folder`."""
    import stdlib_data
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(size.vocabulary, TOKENIZER_TOKENS),
        special_tokens=["<|eos|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((item.docstring for item in stdlib_data.documented_objects()), trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|eos|>", pad_token="<|pad|>").save_pretrained(folder)


def make_model(folder: Path, size: Size) -> None:
    """A Llama of random weights, the same each time, saved in `folder`.

    Small ones are saved in fp32, so that every trainer keeps fp32 master weights; large ones in bf16, as published.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(17)
    torch.set_default_dtype(getattr(torch, size.dtype))
    config = LlamaConfig(
        hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, vocab_size=size.vocabulary,
        max_position_embeddings=2 * CONTEXT, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def tokenize_row(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], int]:
    """Token ids of a row with its end, cut at `CONTEXT`, and how many of them are its prompt."""
    prompt = len(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"])
    ids = tokenizer(row["prompt"] + row["response"], add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id][:CONTEXT], prompt
