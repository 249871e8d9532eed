"""Worker processes that `server_faults.py` kills, or stops and wakes: run by their path."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.errors import LeaseLost
from fm.layout import Storage
from fm.lifecycle import EventType
from fm.store.leases import Lease
from fm.store.store import RunStore
from fm.types import Event, MetricRow


def work(store: RunStore, folder: str, place: str) -> None:
    """An agent as on a machine named `place`, whose trainings are scripted, until it is killed."""
    launcher = ScriptedLauncher(Script(steps=4, save_every=2), SimulatedClock())
    agent = Agent(store, Storage(Path(folder) / "runs"), lambda _name: launcher, Devices(()), f"machine-{place}")
    while True:
        agent.adopt()
        for _ in range(10):
            agent.step()
        if not agent.busy:
            time.sleep(0.05)


def sleep(store: RunStore, _folder: str, tries: str) -> None:
    """Claims a run and writes to it until a write is refused; then tries every other write, too. `tries` times."""
    for _ in range(int(tries)):
        while (claimed := store.claim("sleeper", "here", free=1, total=1)) is None:
            time.sleep(0.01)
        lease = claimed[1]
        print(json.dumps({"claimed": lease.run_id}), flush=True)
        while (outcome := attempt(lambda lease=lease: store.save(lease, new_events=[news(store)]))) == "taken":
            pass
        outcomes = {name: attempt(write) for name, write in writes(store, lease).items()} | {"first": outcome}
        found = {kind: [name for name, what in outcomes.items() if what == kind] for kind in ("taken", "refused")}
        print(json.dumps(found), flush=True)


def writes(store: RunStore, lease: Lease) -> dict[str, Callable[[], Any]]:
    """Every way in which an agent writes on behalf of a run."""
    row = MetricRow(step=1, time=store.clock.now(), values={"loss/train/total": 1.0})
    end = Event(type=EventType.COMPLETED, time=store.clock.now(), message="done")
    return {
        "renew": lambda: store.renew(lease),
        "metrics and log": lambda: store.save(lease, new_metrics=[row], log="a line\n"),
        "work": lambda: store.save(lease, work={"offset": 1}),
        "complete": lambda: store.complete(lease, end, None),
    }


def attempt(write: Callable[[], Any]) -> str:
    try:
        write()
    except LeaseLost:
        return "refused"
    return "taken"


def news(store: RunStore) -> Event:
    return Event(type=EventType.TRAIN_UPDATED, time=store.clock.now(), message="news")


if __name__ == "__main__":
    kind, url, *rest = sys.argv[1:]
    {"work": work, "sleep": sleep}[kind](RunStore(url), *rest)
