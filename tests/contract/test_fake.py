"""The contract on the fake backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import suite
from fm.backends.base import Backend
from fm.backends.fake import FakeBackend, open_fake
from fm.backends.scripted import Script


class _Fake:
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Iterator[Backend]:
        backend = open_fake()
        yield backend
        backend.close()


class TestRuns(_Fake, suite.RunContract):
    @pytest.fixture(autouse=True)
    def script_restored(self, backend: FakeBackend) -> Iterator[None]:
        yield
        backend.launcher.script = Script()

    def refused_by_the_check(self, backend: Backend, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        assert isinstance(backend, FakeBackend)
        backend.launcher.script = Script(check_fails="no row keeps a trained token")
        return {}


class TestLists(_Fake, suite.ListContract):
    pass


class TestModels(_Fake, suite.ModelContract):
    pass


class TestCancel(_Fake, suite.CancelContract):
    pass


class TestRequests(_Fake, suite.RequestContract):
    pass
