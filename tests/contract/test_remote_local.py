"""The contract on the remote backend, over a real socket to `ftctl server` with its own agent: few real trainings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contract import suite
from fm.backends.base import Backend
from fm.remote.opening import open_remote
from support.ftctl_server import server_process
from support.local import processes_of


class _Remote:
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
        folder = tmp_path_factory.mktemp("fm")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("HOME", folder), ("FM_HOME", folder / "client"), ("HF_HUB_OFFLINE", "1")):
                patch.setenv(name, str(value))
            with server_process(folder / "server", "--agent") as server:
                yield open_remote(server.url)
            for process in processes_of(folder):
                process.kill()


class TestRuns(_Remote, suite.RunContract):
    pass


class TestCancel(_Remote, suite.CancelContract):
    pass


class TestModels(_Remote, suite.ModelContract):
    """Lists and refusals, for which nothing need be trained, are tested before a fake."""
