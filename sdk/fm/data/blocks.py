"""Files in blocks and lines: the bytes are shown to whoever takes their digest, and no line fills the memory."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fm.errors import DataFault

ROW_LIMIT = 32 << 20
"""Bytes of the longest line or array element that is read."""
BLOCK = 1 << 20
UTF8_REMEDY = "save the file as UTF-8"

Tap = Callable[[memoryview], object]
"""Sees each block that is read, in order."""


class Tapped(io.RawIOBase):
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


def open_tapped(path: Path, tap: Tap | None) -> io.BufferedReader:
    return io.BufferedReader(Tapped(path, tap), BLOCK)


def decoded_lines(file: io.BufferedReader, name: str) -> Iterator[tuple[int, str | DataFault]]:
    """The lines with their numbers from 1; a fault in the place of one that is too long or not UTF-8."""
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
                yield number, DataFault(name, None, "", "the file is UTF-16", UTF8_REMEDY)
                return
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}"
            yield number, DataFault(name, number, "", problem, UTF8_REMEDY)
