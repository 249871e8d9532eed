"""An agent over a scripted launcher: the real store, the real files, no processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.job import Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder, Storage
from fm.lifecycle import EventType
from fm.store.database import IN_MEMORY
from fm.store.store import RunStore
from fm.types import Principal, RunRecord
from support.stores import moment, new_run

WHO = Principal(user="ada")


class Bench:
    """A store, a storage root, and agents that come and go."""

    def __init__(self, folder: Path, launcher: ScriptedLauncher | None = None, script: Script | None = None) -> None:
        self.clock = SimulatedClock(moment())
        self.store = RunStore(IN_MEMORY, self.clock)
        self.storage = Storage(folder)
        self.launcher = launcher or ScriptedLauncher(script or Script(), self.clock)
        self.agent = self.new_agent()
        self._keys = itertools.count()

    def new_agent(self, place: str = "here", devices: tuple[int, ...] = ()) -> Agent:
        return Agent(self.store, self.storage, lambda _name: self.launcher, Devices(devices), place)

    def create(self, **request: object) -> RunRecord:
        self.clock.sleep(1)  # the queue's order is that of the times
        new = new_run(**{"register_to": "a.b.c", **request})
        return self.store.create(new, str(next(self._keys)), WHO)

    def run(self, record: RunRecord) -> RunRecord:
        return self.store.find("local", record.id)

    def step(self, record: RunRecord, until: Callable[[RunRecord], bool], limit: int = 300) -> RunRecord:
        for _ in range(limit):
            if until(self.run(record)):
                return self.run(record)
            self.clock.sleep(1)
            self.agent.step()
        raise AssertionError(f"not reached: {self.run(record)}")

    def finish(self, record: RunRecord) -> RunRecord:
        return self.step(record, lambda run: run.status.is_terminal())

    def kinds(self, record: RunRecord) -> list[EventType]:
        return [event.type for event in self.store.events(record.id, 0, 1000)]


class Exits(ScriptedLauncher):
    """The training process exits at once, with one code after the other, and then trains as scripted."""

    def __init__(self, *codes: int | None) -> None:
        super().__init__(Script(), SimulatedClock(moment()))
        self._codes = list(codes)

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        handle = super().start(run, folder, stage)
        if stage == "train" and self._codes:
            return {"exits": self._codes.pop(0)}
        return handle

    def poll(self, handle: Handle) -> Poll:
        return Poll(Life.EXITED, handle["exits"]) if "exits" in handle else super().poll(handle)
