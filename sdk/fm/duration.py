"""How long to train, as a number with a unit: ``"3ep"``, ``"500ba"``, ``"1_000_000tok"``, ``"45m"``, ``"2h"``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fm.errors import RequestError


class Unit(StrEnum):
    """What a duration counts."""

    EPOCH = "ep"
    """Passes over the training data."""
    BATCH = "ba"
    """Optimiser steps."""
    TOKEN = "tok"
    """Non-padding tokens seen."""
    SECOND = "s"
    """Wall-clock seconds from STARTED to COMPLETED, over all attempts, without queue and downtime."""


_COUNT = re.compile(r"([0-9][0-9_]*)\s*(ep|ba|tok)")
_CLOCK = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_EXAMPLES = 'write "3ep" (epochs), "500ba" (steps), "1_000_000tok" (tokens), or a time such as "45m", "2h" or "1h30m"'
_MOST = 10**15
"""Larger counts are typing errors, and would overflow the columns that keep them."""


@dataclass(frozen=True, slots=True)
class Duration:
    """`value` counted in `unit`; `value` is at least 1."""

    value: int
    unit: Unit

    @classmethod
    def parse(cls, text: str | Duration) -> Duration:
        """Reads a duration.

        Raises:
            RequestError: the text is not a duration, or counts nothing.
        """
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            raise RequestError(
                f"training_duration is a {type(text).__name__}, not text with a unit",
                field="training_duration",
                hint=_EXAMPLES,
            )
        compact = text.strip().lower()
        if match := _COUNT.fullmatch(compact):
            duration = cls(int(match[1].replace("_", "")), Unit(match[2]))
        elif compact and (match := _CLOCK.fullmatch(compact)):
            hours, minutes, seconds = (int(part or 0) for part in match.groups())
            duration = cls(hours * 3600 + minutes * 60 + seconds, Unit.SECOND)
        else:
            raise RequestError(
                f"training_duration {text!r} is not a duration", field="training_duration", hint=_EXAMPLES
            )
        if not 1 <= duration.value <= _MOST:
            raise RequestError(
                f"training_duration {text!r} must count at least 1 and at most {_MOST:,}",
                field="training_duration",
                hint=_EXAMPLES,
            )
        return duration

    @property
    def is_clock(self) -> bool:
        """Whether this is a wall-clock budget."""
        return self.unit is Unit.SECOND

    def __str__(self) -> str:
        if self.unit is not Unit.SECOND:
            return f"{self.value}{self.unit.value}"
        minutes, seconds = divmod(self.value, 60)
        hours, minutes = divmod(minutes, 60)
        parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
        return "".join(f"{number}{unit}" for number, unit in parts if number)
