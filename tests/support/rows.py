"""Small data files of each kind, as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.data import write_jsonl

MODEL = "org/any-model"
"""A model that nobody loads."""


def chats(path: Path, count: int = 20) -> Path:
    """Chats of one turn."""
    turns = [(f"what is {n} + 1?", f"{n + 1}") for n in range(count)]
    return write_jsonl(
        path,
        [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
            for asked, answer in turns
        ],
    )


def instructions(path: Path, count: int = 20) -> Path:
    """Prompts with their responses."""
    return write_jsonl(path, [{"prompt": f"what is {n} + 1?", "response": f" {n + 1}"} for n in range(count)])


def texts(folder: Path, count: int = 5) -> Path:
    """A folder of .txt files."""
    folder.mkdir()
    for n in range(count):
        (folder / f"{n}.txt").write_text(f"This is text number {n}. " * 20)
    return folder


def model_folder(folder: Path, **config: Any) -> Path:
    """A folder that looks like a model to all that doesn't load it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64, **config}))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (folder / "tokenizer.json").write_text("{}")
    return folder
