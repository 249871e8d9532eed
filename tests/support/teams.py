"""Two teams on one store, each with its view of the backend; trainings are scripted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.scripted import Script, ScriptedLauncher
from fm.backends.stored import StoreBackend
from fm.clock import SimulatedClock
from fm.layout import Storage
from fm.store.store import RunStore
from fm.types import DataRef, ModelRef, Principal, RunRecord
from support.stores import moment, new_run

RED = Principal(user="ada", team="red")
BLUE = Principal(user="bob", team="blue")
ROOT = Principal(user="root")


class TwoTeams:
    """The teams red and blue. What red makes, it makes with names that a test can look for."""

    def __init__(self, url: str, folder: Path, script: Script | None = None) -> None:
        self.clock = SimulatedClock(moment())
        self.store = RunStore(url, self.clock)
        self.admin = self.store.administration(ROOT)
        for team in ("red", "blue"):
            self.admin.add_team(team)
        storage = Storage(folder)
        launcher = ScriptedLauncher(script or Script(steps=6), self.clock)
        self.agent = Agent(self.store, storage, lambda _name: launcher, Devices(()), "here")
        self.red = StoreBackend("test", self.store, storage, RED, tend=lambda: None, poll_seconds=0.0)
        self.blue = self.red.scoped(BLUE)
        self._keys = itertools.count()

    def create(
        self, backend: StoreBackend, model: ModelRef | None = None, digest: str | None = None, **request: Any
    ) -> RunRecord:
        self.clock.sleep(1)
        new = new_run(**request)
        new = replace(new, model=model or new.model)
        if digest:
            new = replace(new, train_data=DataRef(path="/d.jsonl", digest=digest, bytes=1, rows=1))
        return backend.runs.create(new, idempotency_key=f"key-{next(self._keys)}")

    def finish(self, run: RunRecord) -> RunRecord:
        for _ in range(300):
            self.clock.sleep(1)
            self.agent.step()
            if (now := self.store.find(run.team, run.id)).status.is_terminal():
                return now
        raise AssertionError(now)

    def dataset(self, team: str, digest: str, *, sensitive: bool = False) -> None:
        from sqlalchemy import insert

        from fm.store.schema import datasets

        with self.store.database.write() as connection:
            row = {"team": team, "digest": digest, "name": f"{team}.jsonl", "owner": "ada", "created_at": 0.0}
            connection.execute(insert(datasets).values(**row, bytes=10, sensitive=int(sensitive)))

    def close(self) -> None:
        self.store.close()
