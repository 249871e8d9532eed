"""A few rows of the user's own data, from all over it, as a file of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fm.data import check, locate
from fm.errors import DataFault
from fm.request import TaskType
from fm.types import DataRef


def write_sample(
    data: DataRef, task_type: TaskType, path: Path, *, rows: int, characters: int
) -> DataRef:
    """Writes up to `rows` rows of `data` to `path`, as JSON lines.

    Args:
        characters: raw text is cut into pieces of so many, of which up to `rows` are taken.

    Raises:
        DataError: a row is wrong, or there are none.
    """
    values = _evenly(data, rows)
    if task_type is TaskType.CONTINUED_PRETRAIN:
        values = _pieces(values, rows, characters)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return check(locate(str(path), field="train_data_path"), task_type)


def _evenly(data: DataRef, rows: int) -> list[Any]:
    """Rows at equal distances; where they are uncounted, the first ones."""
    every = max(1, (data.rows or 0) // rows)
    chosen = []
    for number, row in enumerate(_readable(data)):
        if number % every == 0:
            chosen.append(row)
        if len(chosen) == rows:
            break
    return chosen


def _readable(data: DataRef) -> Iterator[Any]:
    for row in locate(data.path, field="train_data_path").rows():
        if not isinstance(row, DataFault):
            yield row.value


def _pieces(documents: list[Any], rows: int, characters: int) -> list[dict[str, str]]:
    """Pieces at equal distances of each document."""
    share = -(-rows // max(1, len(documents)))
    pieces = []
    for document in documents:
        text = document if isinstance(document, str) else document["text"]
        starts = range(0, max(1, len(text) - characters // 2), characters)
        pieces += [text[start : start + characters] for start in starts[:: max(1, len(starts) // share)][:share]]
    return [{"text": piece} for piece in pieces if piece.strip()][:rows]
