"""Ending a stage's process: asked first, killed once its time is up."""

from __future__ import annotations

from datetime import datetime, timedelta

from fm.clock import Clock
from fm.launching import GRACE, Handle, Launcher, Life


class Grace:
    """The time that one process gets: to save once it is asked to stop, and to exit once its run has ended."""

    def __init__(self, launcher: Launcher, clock: Clock) -> None:
        self._launcher = launcher
        self._clock = clock
        self._asked: timedelta | None = None
        self._ended: datetime | None = None

    def stop(self, handle: Handle, now: timedelta, save_takes: timedelta) -> None:
        """Asks the process to save and stop, at the first call; kills it at one after the grace time, or after what a
        save takes. `now` is the time for which it has been watched."""
        if self._asked is None:
            self._asked = now
            self._launcher.signal(handle, "stop")
        elif now - self._asked > max(GRACE, save_takes):
            self._launcher.signal(handle, "kill")

    def outlives(self, handle: Handle) -> bool:
        """Whether the process is still there although its run has ended; it is killed after the grace time."""
        if self._launcher.poll(handle).life is not Life.ALIVE:
            return False
        now = self._clock.now()
        self._ended = self._ended or now
        if now - self._ended > GRACE:
            self._launcher.signal(handle, "kill")
        return True
