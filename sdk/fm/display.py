"""Turning values into text for people: sizes, times, and text from elsewhere made harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that reverse the direction of writing."""


def plain(text: str) -> str:
    """`text` without anything that a terminal would act on; such characters are shown as ``\\x1b``."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`plain` text on one line, an error's hint behind its message."""
    return plain(text).replace("\n  → ", " → ").replace("\n", "\\n").replace("\t", " ")


def human_bytes(count: float) -> str:
    """As in "1.4 GB", in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def human_seconds(seconds: float) -> str:
    """As in "1h 05m", "3m 20s" or "12s"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def local_time(moment: datetime | None) -> str:
    """As in "2026-11-23 14:30:05", in local time; empty for None."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def age(moment: datetime, *, now: datetime | None = None) -> str:
    """How long ago `moment` was, as in "3m 20s"."""
    return human_seconds(((now or datetime.now(UTC)) - moment).total_seconds())


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table with every cell escaped, and moments in local time."""
    import html

    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(one_line(_cell(cell)))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    return local_time(value) if isinstance(value, datetime) else str(value)


def text_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text under their names, padded to the widest cell."""
    lines = [list(columns), *([one_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
