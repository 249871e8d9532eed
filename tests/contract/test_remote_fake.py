"""The contract on the remote backend, over a real socket to a server of the fake, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fm
from contract import suite
from fm.backends.base import Backend
from fm.backends.fake import FakeBackend, open_fake
from fm.backends.scripted import Script
from fm.remote.opening import open_remote
from fm.store.database import IN_MEMORY
from fm.testing.serving import Served
from support.stores import fresh_database


class _Remote:
    @pytest.fixture(scope="class", params=["sqlite", "postgres"])
    @classmethod
    def server(
        cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Served]:
        on_postgres = request.param == "postgres"
        url = fresh_database(request.getfixturevalue("postgres")) if on_postgres else IN_MEMORY
        kept = open_fake(store_url=url)
        with pytest.MonkeyPatch.context() as patch, fm.testing.serve(kept) as server:
            patch.setenv("FM_HOME", str(tmp_path_factory.mktemp("client")))
            yield server
        kept.close()

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, server: Served) -> Backend:
        return server.remote


class TestRuns(_Remote, suite.RunContract):
    @pytest.fixture(autouse=True)
    def launcher(self, server: Served) -> Iterator[None]:
        assert isinstance(server.kept, FakeBackend)
        self.scripted = server.kept.launcher
        yield
        self.scripted.script = Script()

    def refused_by_the_check(self, backend: Backend, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        self.scripted.script = Script(check_fails="no row keeps a trained token")
        return {}


class TestLists(_Remote, suite.ListContract):
    @pytest.fixture(scope="class")
    @classmethod
    def stranger(cls, server: Served) -> Backend:
        return open_remote(server.url, token=server.token_for("others"))


class TestModels(_Remote, suite.ModelContract):
    pass


class TestCancel(_Remote, suite.CancelContract):
    pass


class TestRequests(_Remote, suite.RequestContract):
    pass
