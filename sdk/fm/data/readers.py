"""Rows out of files, one at a time: memory is bounded by one row (Parquet: one row group), whatever the file's size.

A row comes as ``(line, value)``, the value as `fm.data.json_values` makes them; a `DataFault` stands in the place
of what can't be read.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fm.data.blocks import BLOCK, ROW_LIMIT, Tap, decoded_lines, open_tapped
from fm.data.json_values import json_array, json_lines, parse_json
from fm.errors import DataFault, MissingExtra

TEXT_PIECE = 4 << 20
"""A text file above this many bytes is split at the next blank line, so that memory stays bounded."""

Raw = tuple[int, Any]
Reader = Callable[[Path, str, Tap | None], Iterator[Raw | DataFault]]


def read_jsonl(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """One JSON value on each line; blank lines are passed over."""
    with open_tapped(path, tap) as file:
        yield from json_lines(file, name)


def read_json(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """An array of objects if the first character is ``[``, else one JSON value on each line."""
    with open(path, "rb") as file:
        start = file.read(1 << 10).removeprefix(codecs.BOM_UTF8).lstrip()
        while not start and (block := file.read(BLOCK)):
            start = block.lstrip()
    with open_tapped(path, tap) as file:
        yield from json_array(file, name) if start.startswith(b"[") else json_lines(file, name)


def read_text(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """The file as one document; above `TEXT_PIECE` bytes, several, split at blank lines, or at twice that."""
    with open_tapped(path, tap) as file:
        lines: list[str] = []
        start, size = 1, 0
        for number, text in _text_lines(file, name):
            if isinstance(text, DataFault):
                yield text
                continue
            lines.append(text)
            size += len(text)
            if size >= TEXT_PIECE and (not text.strip() or size >= 2 * TEXT_PIECE):
                yield start, "".join(lines)
                lines, start, size = [], number + 1, 0
        if (document := "".join(lines)).strip():
            yield start, document


def read_csv(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """A table with a header; `messages` and `tools` hold JSON. Reading stops at a line that can't be read."""
    # The limit belongs to the whole process; the default of 128 KiB is too small for texts.
    csv.field_size_limit(max(csv.field_size_limit(), ROW_LIMIT))
    with open_tapped(path, tap) as file:
        broken: list[DataFault] = []

        def texts() -> Iterator[str]:
            for _, text in _text_lines(file, name):
                if isinstance(text, DataFault):
                    broken.append(text)
                    return
                yield text

        number = 0
        try:
            table = csv.reader(texts(), strict=True)
            header = next(table, None)
            if header is None:
                yield from broken
                return
            if len(set(header)) != len(header) or not all(header):
                yield DataFault(name, None, "header", f"{header!r} has an empty or repeated name", "name each column")
                return
            for row in table:
                number += 1
                if len(row) == len(header):
                    yield _table_row(name, number, dict(zip(header, row, strict=True)))
                elif row:
                    problem = f"{len(row)} fields, where the header has {len(header)}"
                    yield DataFault(name, number, "", problem, "quote fields that hold commas or line ends")
        except csv.Error as error:
            yield DataFault(name, number + 1, "", f"not CSV: {error}", "check the quotes of this row")
        yield from broken


def read_parquet(path: Path, name: str, _tap: Tap | None) -> Iterator[Raw | DataFault]:
    """The rows of all row groups. The tap is shown nothing: Parquet isn't read in order."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra(f"{name} is Parquet, which needs {error.name}, not installed here", extra="local") from error
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield _table_row(name, number, row)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        yield DataFault(name, number + 1 if number else None, "", f"not Parquet: {reason}", "write the file again")


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}


def _text_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, str | DataFault]]:
    for number, text in decoded_lines(file, name):
        if isinstance(text, str) and "\0" in text:
            remedy = "remove it; a file with many of them is not text"
            yield number, DataFault(name, number, "", "a NUL character", remedy)
        else:
            yield number, text


def _table_row(name: str, number: int, row: dict[str, Any]) -> Raw | DataFault:
    for column in ("messages", "tools"):
        text = row.get(column)
        if isinstance(text, str) and text.strip():
            try:
                row[column] = parse_json(text)
            except ValueError as error:
                return DataFault(name, number, column, f"not JSON: {error}", "write a JSON array of messages as text")
        elif column == "tools" and column in row and not text:
            del row[column]
    return number, tuple((key, pairs_of(value)) for key, value in row.items())


def pairs_of(value: Any) -> Any:
    """`value` with dicts as pairs. Fields that are None are left out: a column of structs gives each all fields."""
    if isinstance(value, dict):
        return tuple((key, pairs_of(item)) for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return [pairs_of(item) for item in value]
    return value
