"""Moments as people write them: a date, an ISO time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from fm.errors import RequestError

_AGO = re.compile(r"(\d{1,9})\s*([smhdw])")
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_moment(value: datetime | date | str, *, field: str, now: datetime | None = None) -> datetime:
    """The moment in UTC. Times without a zone are local time; a date is its first moment; "2h" is two hours ago.

    Raises:
        RequestError: the text is none of these.
    """
    if isinstance(value, str):
        text = value.strip()
        if match := _AGO.fullmatch(text.lower()):
            try:
                return (now or datetime.now(UTC)) - timedelta(**{_UNIT[match[2]]: int(match[1])})
            except OverflowError:
                raise _wrong(value, field) from None
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            raise _wrong(text, field) from None
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):  # the first and last hours of the calendar
        raise _wrong(moment.isoformat(), field) from None


def _wrong(text: str, field: str) -> RequestError:
    return RequestError(
        f"{field} {text!r} is not a moment", field=field, hint='write "2026-11-23", "2026-11-23T14:30" or "2h" (ago)'
    )
