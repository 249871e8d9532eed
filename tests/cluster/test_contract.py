"""The contract on the Ray launcher: a real cluster, real jobs, and in the trainings' place what writes as they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from contract import suite
from fm.backends.base import Backend
from support.ray_backend import stub_backend
from support.ray_cluster import Cluster


class _Ray:
    quick: ClassVar[dict[str, Any]] = {**suite.RunContract.quick, "launcher": "ray"}

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Backend]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environment.items():
                patch.setenv(name, value)
            with stub_backend(tmp_path_factory.mktemp("fm"), cluster) as backend:
                yield backend


class TestRuns(_Ray, suite.RunContract):
    pass


class TestLists(_Ray, suite.ListContract):
    pass


class TestModels(_Ray, suite.ModelContract):
    pass


class TestCancel(_Ray, suite.CancelContract):
    pass


class TestRequests(_Ray, suite.RequestContract):
    pass
