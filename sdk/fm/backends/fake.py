"""The fake backend: local on an in-memory store and a scripted launcher, for tests of code that calls `fm`. No torch.

Runs go through the very same agent, store and files as real ones. Time passes only when somebody asks about a run.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.scripted import Script, ScriptedLauncher
from fm.backends.stored import StoreBackend
from fm.clock import SimulatedClock
from fm.layout import Storage
from fm.store.database import IN_MEMORY
from fm.store.store import RunStore
from fm.types import Principal

_SECONDS_PER_LOOK = 1.0


def open_fake(script: Script | None = None, *, store_url: str = IN_MEMORY) -> FakeBackend:
    """A fresh fake backend, whose trainings do what `script` says. Nothing of it remains when it is closed, unless
    `store_url` names a database."""
    clock = SimulatedClock()
    store = RunStore(store_url, clock)
    root = Path(tempfile.mkdtemp(prefix="fm-fake-"))
    storage = Storage(root)
    launcher = ScriptedLauncher(script or Script(), clock)
    agent = Agent(store, storage, lambda _name: launcher, Devices(()), "fake", cluster=True)
    backend = FakeBackend(
        "fake",
        store,
        storage,
        Principal(user="tester"),
        tend=_let_time_pass(agent, clock),
        poll_seconds=0.0,
        trains_here=False,
    )
    weakref.finalize(backend, shutil.rmtree, root, ignore_errors=True)
    backend.launcher = launcher
    return backend


class FakeBackend(StoreBackend):
    """The store backend of a fake; `launcher.script` may be replaced between runs."""

    launcher: ScriptedLauncher


def _let_time_pass(agent: Agent, clock: SimulatedClock) -> Callable[[], None]:
    turn = threading.Lock()  # a server asks from many threads

    def tend() -> None:
        with turn:
            clock.sleep(_SECONDS_PER_LOOK)
            agent.step()

    return tend
