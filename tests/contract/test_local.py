"""The contract on the local backend: a real SQLite store, a real agent process, real training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import fm
from contract import suite
from fm.backends.base import Backend
from fm.errors import Unavailable
from support.local import local_backend


class _Local:
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
        with local_backend(tmp_path_factory.mktemp("fm")) as backend:
            yield backend


class TestRuns(_Local, suite.RunContract):
    pass


class TestLists(_Local, suite.ListContract):
    pass


class TestModels(_Local, suite.ModelContract):
    pass


class TestCancel(_Local, suite.CancelContract):
    pass


class TestRequests(_Local, suite.RequestContract):
    def test_a_hub_model_that_is_not_here_and_cannot_be_asked_for_is_said_so(self, make: Callable[..., fm.Run]) -> None:
        with pytest.raises(Unavailable, match="no/such-model"):
            make(model="no/such-model")
