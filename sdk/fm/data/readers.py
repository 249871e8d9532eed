"""Rows out of files, one at a time: memory is bounded by one row (Parquet: one row group), whatever the file's size.

A row comes as ``(line, value)``; what can't be read comes as a `DataFault` in its place. Objects are *pairs*, tuples
of ``(key, value)``, not dicts: the C scanner makes them at no extra cost, and a key that occurs twice stays visible.
Arrays are lists.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fm.errors import DataFault, MissingExtra

ROW_LIMIT = 32 << 20
"""Bytes of the longest line or array element that is read."""
TEXT_PIECE = 4 << 20
"""A text file above this many bytes is split at the next blank line, so that memory stays bounded."""
_BLOCK = 1 << 20
_BLANK = " \t\r\n"
_UTF8_REMEDY = "save the file as UTF-8"

Raw = tuple[int, Any]
Tap = Callable[[memoryview], object]
Reader = Callable[[Path, str, Tap | None], Iterator[Raw | DataFault]]


class _RefusedError(ValueError):
    """A constant that JSON does not have."""


def _refuse(constant: str) -> Any:
    raise _RefusedError(constant)


Scan = Callable[[str, int], tuple[Any, int]]
_scan: Scan = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse).scan_once  # type: ignore[attr-defined]
_scan_leniently: Scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class _Tapped(io.RawIOBase):
    """A file that shows each block that is read from it to `tap`."""

    def __init__(self, path: Path, tap: Tap | None) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 — closed with this object
        self._tap = tap

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        if count and self._tap:
            self._tap(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path, tap: Tap | None) -> io.BufferedReader:
    return io.BufferedReader(_Tapped(path, tap), _BLOCK)


def read_jsonl(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """One JSON value on each line; blank lines are passed over."""
    with _open(path, tap) as file:
        yield from _json_lines(file, name)


def read_json(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """An array of objects if the first character is ``[``, else one JSON value on each line."""
    with open(path, "rb") as file:
        start = file.read(1 << 10).removeprefix(codecs.BOM_UTF8).lstrip()
        while not start and (block := file.read(_BLOCK)):
            start = block.lstrip()
    with _open(path, tap) as file:
        yield from _json_array(file, name) if start.startswith(b"[") else _json_lines(file, name)


def read_text(path: Path, name: str, tap: Tap | None) -> Iterator[Raw | DataFault]:
    """The file as one document; above `TEXT_PIECE` bytes, several, split at blank lines, or at twice that."""
    with _open(path, tap) as file:
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
    with _open(path, tap) as file:
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


def _json_lines(file: io.BufferedReader, name: str) -> Iterator[Raw | DataFault]:
    for number, text in _lines(file, name):
        if isinstance(text, DataFault):
            yield text
            continue
        stripped = text.strip(_BLANK)
        if not stripped:
            continue
        try:
            value, end = _scan(stripped, 0)
        except (ValueError, StopIteration, RecursionError) as error:
            yield _json_fault(name, number, error, cut=not text.endswith("\n"))
            continue
        if end != len(stripped):
            problem = f"more text after the value, from column {end + 1}"
            yield DataFault(name, number, "", problem, "write one JSON object on each line")
            continue
        yield number, value


def _json_array(file: io.BufferedReader, name: str) -> Iterator[Raw | DataFault]:
    window = _Window(file)
    number = 1
    try:
        window.skip_blank()
        window.at += 1  # the bracket
        if window.skip_blank() == "]":
            window.at += 1
        else:
            while True:
                try:
                    yield number, window.element()
                except _RefusedError as error:
                    yield _json_fault(name, number, error, cut=False)
                    window.pass_over()
                mark = window.skip_blank()
                window.at += 1
                if mark == "]":
                    break
                if mark != ",":
                    problem = f"{mark!r} where , or ] has to follow" if mark else "the file ends inside the array"
                    yield DataFault(name, number, "", problem, "check whether the file was cut off")
                    return
                number += 1
                window.skip_blank()
        if mark := window.skip_blank():
            yield DataFault(name, None, "", f"{mark!r} after the array's end", "keep one array in the file")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 after element {number}: {error.reason}; reading stopped here"
        yield DataFault(name, number, "", problem, _UTF8_REMEDY)
    except (ValueError, StopIteration, RecursionError) as error:
        yield _json_fault(name, number, error, cut=window.ended)


class _Window:
    """The part of a JSON array that is in memory: from `at` on in `text`."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.at = 0
        self.ended = False

    def _fill(self, size: int = _BLOCK) -> None:
        block = self._file.read(size)
        self.ended = not block
        self.text = self.text[self.at :] + self._decoder.decode(block, final=self.ended)
        self.at = 0

    def skip_blank(self) -> str:
        """Moves to the next character that isn't blank, and returns it; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANK:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._fill()

    def element(self) -> Any:
        """The value that starts here. Moves behind it."""
        return self._parse(_scan)

    def pass_over(self) -> None:
        """Moves behind the value that starts here, which may hold constants that JSON does not have."""
        self._parse(_scan_leniently)

    def _parse(self, scan: Scan) -> Any:
        while True:
            try:
                value, end = scan(self.text, self.at)
                # A number may go on in the next block.
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            except (json.JSONDecodeError, StopIteration):
                if self.ended:
                    raise
            if len(self.text) - self.at > ROW_LIMIT:
                raise ValueError(f"an element of more than {ROW_LIMIT >> 20} MB, or one that never ends")
            # Twice as much each time, so that a long element is not parsed a hundred times.
            self._fill(max(_BLOCK, len(self.text) - self.at))


def _lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, str | DataFault]]:
    number = 0
    while line := file.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            while not line.endswith(b"\n") and (line := file.readline(ROW_LIMIT)):
                pass
            problem = f"a line of more than {ROW_LIMIT >> 20} MB"
            yield number, DataFault(name, number, "", problem, "split it, or check whether line ends were lost")
            continue
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                yield number, DataFault(name, None, "", "the file is UTF-16", _UTF8_REMEDY)
                return
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}"
            yield number, DataFault(name, number, "", problem, _UTF8_REMEDY)


def _text_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, str | DataFault]]:
    for number, text in _lines(file, name):
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


def parse_json(text: str) -> Any:
    """The value of a JSON text, objects as pairs.

    Raises:
        ValueError: it is not one JSON value, or is nested too deeply.
    """
    stripped = text.strip(_BLANK)
    try:
        value, end = _scan(stripped, 0)
    except StopIteration:
        raise ValueError("no value") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if end != len(stripped):
        raise ValueError(f"more text after the value, from column {end + 1}")
    return value


def pairs_of(value: Any) -> Any:
    """`value` with dicts as pairs. Fields that are None are left out: a column of structs gives each all fields."""
    if isinstance(value, dict):
        return tuple((key, pairs_of(item)) for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return [pairs_of(item) for item in value]
    return value


def _json_fault(name: str, number: int, error: BaseException, *, cut: bool) -> DataFault:
    if isinstance(error, _RefusedError):
        return DataFault(name, number, "", f"{error} is not JSON", "write null, or leave the field out")
    if isinstance(error, RecursionError):
        return DataFault(name, number, "", "nested too deeply", "flatten the value")
    if isinstance(error, json.JSONDecodeError):
        problem = f"not JSON at column {error.pos + 1}: {error.msg.removesuffix(' at')}"
    elif isinstance(error, StopIteration):
        problem = f"not JSON at column {error.value + 1}: no value starts there"
    else:
        problem = f"not JSON: {str(error).partition(';')[0]}"
    if cut:
        return DataFault(name, number, "", f"{problem}, where the file ends", "check whether the file was cut off")
    return DataFault(name, number, "", problem, "write one JSON object on each line, or one array of objects")
