"""A base that is worth adapting, and rows to adapt it to: small enough to be made within seconds."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from support.data import write_jsonl
from support.models import CHAT_TEMPLATE, EOS, Example, byte_tokenizer, make_job, model, run, tokenizer

PLANTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "rank": ({"lora": {"rank": 1}}, "rank too small", '"rank": 64'),
    "modules": ({"lora": {"target_modules": ["q_proj"]}}, "target modules too few", "all-linear"),
    "learning rate": ({"learning_rate": 1e-4}, "learning rate too small", "learning_rate=0.00"),
}
"""Faults of a request for the base below: what is asked for, the preflight's verdict, and what its remedy has in it."""
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]


def word_pairs(path: Path, count: int, *, seed: int = 0) -> Path:
    """`count` prompts and responses of made-up words: nothing of a response can be guessed from its prompt."""
    rows = [{"prompt": prompt, "response": response} for prompt, response in _texts(count, seed)]
    return write_jsonl(path, rows)


def trained_base(folder: Path) -> Path:
    """A Llama of 90,000 parameters that has learned to spell such words, with its tokenizer.

    On random weights an adapter has nothing to build on: a frozen random head can't tell tokens apart.
    """
    words = byte_tokenizer(CHAT_TEMPLATE)
    with tempfile.TemporaryDirectory() as scratch:
        # Each row is seen once: it is to learn how words are spelled, not these by heart.
        job, attempt = make_job(
            Path(scratch), rows=[_tokens(words, *pair) for pair in _texts(6400, 99)],
            base=model("llama", Path(scratch) / "base", tied=True, hidden=64), training_duration="1ep", batch_size=16,
            learning_rate=2e-3, save_interval="1ep",
        )  # fmt: skip
        run(job, attempt)
        shutil.copytree(attempt.final, folder)
    return tokenizer(folder)


def _texts(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        lengths = [draw.randint(1, 3) for _ in range(draw.randint(least, most))]
        return " ".join("".join(draw.choices(_SYLLABLES, k=length)) for length in lengths)

    return [(words(1, 3) + "\n", words(4, 6)) for _ in range(count)]


def _tokens(words: PreTrainedTokenizerFast, prompt: str, response: str) -> Example:
    first, second = words(prompt)["input_ids"], [*words(response)["input_ids"], EOS]
    return first + second, [False] * len(first) + [True] * len(second)
