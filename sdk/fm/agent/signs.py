"""Signs of life: what the files of a stage tell of its process where the process itself can't be asked."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from fm.layout import StageFolder

_SHORTEST_STALL = timedelta(minutes=5)
_LONGEST_PAUSE = timedelta(minutes=30)
SILENCE = timedelta(minutes=10)
"""After so long without a sign, a process that can't be asked counts as gone: its host died, or bears another name."""


def seconds_lived(folder: StageFolder, since: datetime) -> float:
    """Seconds from `since` to the last file that the process in `folder` wrote: downtime is not training time."""
    started = since.timestamp()
    signs = [path.stat().st_mtime for path in (folder.heartbeat, folder.events, folder.metrics) if path.exists()]
    return max(0.0, max(signs, default=started) - started)


class Silence:
    """How long a process has given no sign, by the clock of who looks; that of its host may differ."""

    def __init__(self) -> None:
        self._heard: tuple[Any, datetime] | None = None
        self._longest: timedelta | None = None

    def listen(self, folder: StageFolder, read: Any, now: datetime) -> timedelta:
        """For how long neither the heartbeat nor `read`, how far its files have been read, has changed."""
        sign = (read, folder.heartbeat.stat().st_mtime_ns if folder.heartbeat.exists() else 0)
        if self._heard is None or self._heard[0] != sign:
            if self._heard is not None and folder.heartbeat.exists():
                # The first step's sign ends the loading of the model, which says nothing of the steps.
                self._longest = max(self._longest, now - self._heard[1]) if self._longest is not None else timedelta()
            self._heard = sign, now
        return now - self._heard[1]

    @property
    def stalled_after(self) -> timedelta:
        """The silence that means of a living process that it hangs: ten times the longest from which it came back,
        within bounds, and the upper bound as long as no step is done."""
        if self._longest is None:
            return _LONGEST_PAUSE
        return min(_LONGEST_PAUSE, max(_SHORTEST_STALL, 10 * self._longest))
