"""The local backend: a run store on this machine, and an agent that is started when there is work."""

from __future__ import annotations

import getpass
import threading
import time

from fm.backends.stored import StoreBackend
from fm.settings import Settings
from fm.store.store import RunStore
from fm.types import Principal

_TEND_EVERY = 2.0


def open_local() -> StoreBackend:
    """The backend that the `FM_*` settings describe.

    Raises:
        HomeError: FM_HOME can't hold the run store.
        StoreError: the run store can't be used.
    """
    settings = Settings.read()
    settings.prepare_home()
    store = RunStore(settings.store_url)
    return StoreBackend(
        "local",
        store,
        settings.storage,
        Principal(user=getpass.getuser()),
        tend=_Tender(settings, store),
        poll_seconds=0.3,
        pending=settings.home / "pending",
        files=settings.open_files(),
    )


class _Tender:
    """Sees to it that an agent lives while runs are unfinished; looks at most every two seconds."""

    def __init__(self, settings: Settings, store: RunStore) -> None:
        self._settings = settings
        self._store = store
        self._looked = float("-inf")
        self._lock = threading.Lock()
        self._inline: threading.Thread | None = None

    def __call__(self) -> None:
        now = time.monotonic()
        with self._lock:
            if self._settings.agent == "off" or now - self._looked < _TEND_EVERY or not self._store.has_unfinished():
                return
            self._looked = now
            # The agent's modules are only loaded once there is something for it to do.
            from fm.agent import daemon

            if self._settings.agent == "auto":
                daemon.ensure(self._settings, self._store)
            elif self._inline is None or not self._inline.is_alive():
                self._inline = daemon.start_inline(self._settings)
