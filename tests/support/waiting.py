"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")


def until(condition: Callable[[], _Found], what: str = "", *, seconds: float = 30.0, every: float = 0.05) -> _Found:
    """Asks until `condition` gives something true, and returns that. Fails after `seconds`, and says on `what`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or 'what was waited for'}"
        time.sleep(every)
    return found
