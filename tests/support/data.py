"""Data files and rows for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    """A chat row: user and assistant by turns say `contents`."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(contents)]
    return {"messages": messages}


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """One row on each line; bytes and text are written as they stand."""
    with path.open("wb") as file:
        for row in rows:
            text = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
            file.write(text + b"\n")
    return path


def many_chats(path: Path, count: int) -> Path:
    """`count` different chats of two or four turns."""
    rows = [
        chat(f"What is {n} plus {n}?", f"It is {2 * n}.", *(["And times?", f"{n * n}."] if n % 2 else []))
        for n in range(count)
    ]
    return write_jsonl(path, rows)


def many_pairs(path: Path, count: int) -> Path:
    """`count` different prompts and responses."""
    rows = [{"prompt": f"what is {n} plus {n}?\n", "response": f"it is {2 * n}"} for n in range(count)]
    return write_jsonl(path, rows)
