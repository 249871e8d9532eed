"""Parts of what is asked for: of a file's bytes, and of a series' points."""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.exceptions import HTTPException

from fm.types import MetricRow

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
