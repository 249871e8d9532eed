"""The moment by which the calls of a block must be answered, for whoever asks a server below them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float | None] = ContextVar("fm_until", default=None)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Calls of the block end within `seconds`, or within what an outer block leaves; None changes nothing."""
    outer = _until.get()
    end = None if seconds is None else time.monotonic() + seconds
    token = _until.set(min((moment for moment in (outer, end) if moment is not None), default=None))
    try:
        yield
    finally:
        _until.reset(token)


def until() -> float | None:
    """The moment, of `time.monotonic`; None where the caller set none."""
    return _until.get()
