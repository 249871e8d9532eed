"""A local backend whose agent, a thread of this process, runs everything on a Ray cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.stored import StoreBackend
from fm.layout import Storage
from fm.ray.cluster import RayCluster
from fm.ray.launcher import RayLauncher
from fm.store.store import RunStore
from fm.types import Principal
from support.ray_cluster import Cluster


@contextmanager
def stub_backend(home: Path, cluster: Cluster, entry: str = "support.ray_stub") -> Iterator[StoreBackend]:
    """Jobs are real ones, and by default train nothing: see `support.ray_stub`."""
    home.mkdir(parents=True, exist_ok=True)
    store, storage = RunStore(f"sqlite:///{home / 'ftctl.db'}"), Storage(home)
    launcher = RayLauncher(RayCluster(cluster.address, cluster.token), entry=entry)
    agent = Agent(store, storage, lambda _: launcher, Devices(()), "ray-test", launcher="ray")
    end = threading.Event()

    def work() -> None:
        while not end.wait(0.2):
            agent.step()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield StoreBackend(
            "local", store, storage, Principal(user="tester"), tend=lambda: None, poll_seconds=0.2,
            pending=home / "pending",
        )  # fmt: skip
    finally:
        end.set()
        thread.join()
        store.close()
