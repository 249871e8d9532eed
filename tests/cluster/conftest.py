"""One real Ray cluster of two nodes for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fm
from support.local import local_backend
from support.ray_cluster import Cluster, ray_cluster
from support.ray_kills import RayVictim


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def named(isolated: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 (which cleans up)
    """The cluster is the one that the environment names."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[RayVictim]:
    home = tmp_path_factory.mktemp("ray")
    with local_backend(home / "fm", OMP_NUM_THREADS="1", **cluster.environment) as backend:
        yield RayVictim(backend, home, cluster)


@pytest.fixture(scope="module")
def here(victim: RayVictim) -> fm.Run:
    """The same training, undisturbed, by two processes of this machine."""
    return victim.here()
