"""A server of a fake for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fm
from fm.testing.serving import Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch, fm.testing.serve() as served:
        patch.setenv("FM_HOME", str(tmp_path_factory.mktemp("client")))
        yield served
