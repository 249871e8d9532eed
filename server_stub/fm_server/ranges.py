"""Parts of what is asked for: of a file's bytes, and of a series' points."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import IO

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from fm.types import MetricRow

_BLOCK = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")


def wanted_range(header: str, size: int) -> tuple[int, int]:
    """The part [start, end) of `size` bytes that a Range header asks for. Several parts, or a form that is not known,
    mean all of it, as HTTP allows."""
    match = _RANGE.fullmatch(header)
    if not match:
        return 0, size
    start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    if start >= end and (start, size) != (0, 0):
        raise HTTPException(416, f"the file has {size} bytes")
    return start, end


def send_file(file: IO[bytes], wanted: str, *, digest: str = "") -> StreamingResponse:
    """The bytes of `file` that the Range header `wanted` asks for; `digest` names all of them."""
    size = file.seek(0, 2)
    start, end = wanted_range(wanted, size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if digest:
        headers["ETag"] = f'"{digest}"'
    if (start, end) != (0, size):
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if "Content-Range" in headers else 200
    return StreamingResponse(_blocks(file, start, end), status, headers, "application/octet-stream")


def _blocks(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (block := file.read(min(_BLOCK, end - start))):
            start += len(block)
            yield block


def thinned(rows: Iterable[MetricRow], most: int) -> list[MetricRow]:
    """At most `most` of the rows, evenly spread, the last one among them. Reads them once, and holds 2 * `most`."""
    kept: list[MetricRow] = []
    stride = 1
    last = None
    for number, row in enumerate(rows):
        last = row
        if number % stride == 0:
            kept.append(row)
        if len(kept) > 2 * most:
            kept, stride = kept[::2], 2 * stride
    while len(kept) > most:
        kept = kept[::2]
    if last is not None and kept[-1] is not last:
        kept = [*kept[: most - 1], last]
    return kept
