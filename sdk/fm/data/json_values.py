"""JSON values one at a time, from lines or from an array.

Objects are *pairs*, tuples of ``(key, value)``, not dicts: the C scanner makes them at no extra cost, and a key that
occurs twice stays visible. Arrays are lists.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from fm.data import blocks
from fm.errors import DataFault

_BLANK = " \t\r\n"


class _RefusedError(ValueError):
    """A constant that JSON does not have."""


def _refuse(constant: str) -> Any:
    raise _RefusedError(constant)


_Scan = Callable[[str, int], tuple[Any, int]]
_scan: _Scan = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse).scan_once  # type: ignore[attr-defined]
_scan_leniently: _Scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def json_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, Any] | DataFault]:
    """One value on each line; blank lines are passed over."""
    for number, text in blocks.decoded_lines(file, name):
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


def json_array(file: io.BufferedReader, name: str) -> Iterator[tuple[int, Any] | DataFault]:
    """The elements of the array that the file holds."""
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
        yield DataFault(name, number, "", problem, blocks.UTF8_REMEDY)
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

    def _fill(self, size: int = 0) -> None:
        block = self._file.read(max(size, blocks.BLOCK))
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

    def _parse(self, scan: _Scan) -> Any:
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
            if len(self.text) - self.at > blocks.ROW_LIMIT:
                raise ValueError(f"an element of more than {blocks.ROW_LIMIT >> 20} MB, or one that never ends")
            # Twice as much each time, so that a long element is not parsed a hundred times.
            self._fill(len(self.text) - self.at)


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
