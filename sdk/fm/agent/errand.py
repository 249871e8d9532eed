"""What takes too long for an agent's step, done in a thread while the agent goes on and renews its leases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Errand(Generic[T]):
    """One piece of work. It is begun at once, and with `wait` also done when the constructor returns."""

    def __init__(self, work: Callable[[], T], *, wait: bool) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._done = threading.Event()
        if wait:
            self._run()
        else:
            # A daemon, since what moves files can be broken off at any point, and an agent ends when it is asked to.
            threading.Thread(target=self._run, name="fm-files", daemon=True).start()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def result(self) -> T:
        """What the work returned. Raises what it raised."""
        self._done.wait()
        if self._error:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()
