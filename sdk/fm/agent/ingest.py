"""Reading what a stage has written since the last look, without ever taking half a line for a whole one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fm.layout import StageFolder
from fm.store.leases import LOG_CAP
from fm.types import Event, MetricRow

_PAGE = 1 << 20
"""Bytes read of each file at one look: a flood of output delays nobody else's events for long."""

_LOG_ON_DISK = 64 << 20


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a stage's files have been read: bytes, and for events also lines."""

    events: int = 0
    lines: int = 0
    metrics: int = 0
    log: int = 0


@dataclass(frozen=True, slots=True)
class News:
    """What a stage has written since the last look."""

    cursor: Cursor
    events: list[Event] = field(default_factory=list)
    metrics: list[MetricRow] = field(default_factory=list)
    log: str = ""


def read_news(folder: StageFolder, attempt: int, cursor: Cursor) -> News:
    """What lies beyond `cursor` in the stage's files."""
    event_lines = _whole_lines(folder.events, cursor.events)
    metric_lines = _whole_lines(folder.metrics, cursor.metrics)
    # What the store would not keep need not be read: a flood of output would only hold up its end.
    log = _log_text(_read(folder.log, cursor.log)) if cursor.log < LOG_CAP else b""
    return News(
        cursor=Cursor(
            events=cursor.events + len(event_lines),
            lines=cursor.lines + event_lines.count(b"\n"),
            metrics=cursor.metrics + len(metric_lines),
            log=cursor.log + len(log),
        ),
        events=list(_events(event_lines, attempt, cursor.lines)),
        metrics=list(_metrics(metric_lines)),
        log=log.decode(errors="replace"),
    )


def cap_log(folder: StageFolder, cursor: Cursor) -> None:
    """Cuts a flood of output back to what was read of it, so that it can't fill the disk. What comes then is appended,
    so of a log that is too long the beginning and the end remain."""
    if cursor.log >= LOG_CAP and folder.log.stat().st_size > _LOG_ON_DISK:
        os.truncate(folder.log, LOG_CAP)


def _events(lines: bytes, attempt: int, before: int) -> Iterator[Event]:
    for number, value in _objects(lines):
        try:
            yield Event.model_validate({**value, "attempt": attempt, "line": before + number})
        except ValidationError:
            # A line that is no event was not written by our reporter; the log still shows it to a person.
            continue


def _metrics(lines: bytes) -> Iterator[MetricRow]:
    for _, value in _objects(lines):
        try:
            row = MetricRow.model_validate(value)
        except ValidationError:
            continue
        # SQLite has no place for a NaN.
        yield row.model_copy(update={"values": {key: n for key, n in row.values.items() if math.isfinite(n)}})


def _objects(lines: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
            if b"\\u" in line:  # half a surrogate pair, as in a file name that is not UTF-8, can't be stored
                value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield number, value


def _read(path: Path, offset: int, size: int = _PAGE) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""


def _whole_lines(path: Path, offset: int) -> bytes:
    size = _PAGE
    # A line may be longer than a page, as the answers to many prompts are; then more is read until it ends.
    while len(data := _read(path, offset, size)) == size and b"\n" not in data:
        size *= 4
    return data[: data.rfind(b"\n") + 1]


def _log_text(data: bytes) -> bytes:
    """`data` up to its last line end; all of a page that has none, so that one endless line can't stop the reading."""
    end = data.rfind(b"\n") + 1
    return data[:end] if end or len(data) < _PAGE else data
