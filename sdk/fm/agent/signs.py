"""Signs of life: what the files of a stage tell of its process where the process itself can't be asked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from fm.agent.processes import leftover
from fm.layout import StageFolder

_SHORTEST_STALL = timedelta(minutes=5)
_LONGEST_PAUSE = timedelta(minutes=30)
SILENCE = timedelta(minutes=10)
"""After so long without a sign, a process that can't be asked counts as gone: its host died, or bears another name."""
_LONGEST_GAP = timedelta(seconds=5)


def began(folder: StageFolder, started: datetime) -> datetime:
    """When the training in `folder` began: as it `started`, or when its first process did, if it has noted that: then
    it had to wait for its place."""
    noted = (leftover(folder) or {}).get("began")
    return max(started, datetime.fromtimestamp(noted, UTC)) if isinstance(noted, float) else started


def seconds_lived(folder: StageFolder, since: datetime) -> float:
    """Seconds from when the attempt that was started at `since` began to the last file that it wrote: neither waiting
    nor downtime is training time."""
    if (pause := _pause_in(folder)) and pause[0] == "waiting":
        return 0.0
    started = began(folder, since).timestamp()
    signs = [path.stat().st_mtime for path in (folder.heartbeat, folder.events, folder.metrics) if path.exists()]
    return max(0.0, max(signs, default=started) - started)


class WatchedTime:
    """Time during which somebody looked. A long gap between two looks counts as a short one: a machine that was
    suspended or whose clock was set, or an agent that was busy elsewhere, makes no process older."""

    def __init__(self) -> None:
        self._watched = timedelta()
        self._last: datetime | None = None

    def look(self, now: datetime) -> timedelta:
        """What has passed since the first look."""
        if self._last is not None:
            self._watched += min(max(now - self._last, timedelta()), _LONGEST_GAP)
        self._last = now
        return self._watched


class Silence:
    """How long a process has given no sign, by the watched time of who looks; the clock of its host may differ."""

    def __init__(self) -> None:
        self._heard: tuple[Any, int, timedelta] | None = None
        self._longest: timedelta | None = None
        self._pause: tuple[str, timedelta] | None = None

    def listen(self, folder: StageFolder, read: Any, now: timedelta) -> timedelta:
        """For how long neither the heartbeat nor `read`, how far its files have been read, has changed."""
        beat = folder.heartbeat.stat().st_mtime_ns if folder.heartbeat.exists() else 0
        if self._heard is None or self._heard[:2] != (read, beat):
            if self._heard is not None and self._heard[1] and not self._pause:
                # What lies before the first heartbeat, or was announced, says nothing of the steps.
                self._longest = max(self._longest or timedelta(), now - self._heard[2])
            self._heard, self._pause = (read, beat, now), _pause_in(folder)
        return now - self._heard[2]

    @property
    def stalled_after(self) -> timedelta:
        """The silence that means of a living process that it hangs: what it asked for, where it announced a pause; else
        ten times the longest from which it came back, within bounds, and the upper bound as long as none is known."""
        if self._pause:
            return max(_SHORTEST_STALL, self._pause[1])
        if self._longest is None:
            return _LONGEST_PAUSE
        return min(_LONGEST_PAUSE, max(_SHORTEST_STALL, 10 * self._longest))

    @property
    def gone_after(self) -> timedelta:
        """The silence after which a process that can't be asked counts as gone."""
        return max(SILENCE, self._pause[1]) if self._pause else SILENCE

    @property
    def save_takes(self) -> timedelta:
        """How long the save may take that it has announced; nothing if it saves nothing."""
        return self._pause[1] if self._pause and self._pause[0] == "saving" else timedelta()


def _pause_in(folder: StageFolder) -> tuple[str, timedelta] | None:
    try:
        pause = json.loads(folder.heartbeat.read_bytes())["pause"]
        return str(pause["why"]), timedelta(seconds=pause["seconds"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None  # it announces none, or nothing that can be read
