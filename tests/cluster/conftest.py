"""One real Ray cluster of two nodes for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ray_cluster import Cluster, ray_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def named(isolated: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 (which cleans up)
    """The cluster is the one that the environment names."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
