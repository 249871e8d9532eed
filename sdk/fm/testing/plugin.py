"""The pytest plugin, which `ftctl` installs: the fixtures `fm_home` and `fm_fake`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fm.backends.scripted import ScriptedLauncher

_VARIABLES = ("FM_RUNS", "FM_FILES", "FM_STORE", "FM_TOKEN", "FM_AGENT", "FM_RAY_ADDRESS", "FM_RAY_ENV")


@pytest.fixture
def fm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FM_HOME is an empty folder, the backend is local, and no other `FM_*` setting of the machine reaches the test."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "fm-home"
    monkeypatch.setenv("FM_HOME", str(home))
    monkeypatch.setenv("FM_BACKEND", "local")  # else the server that `ftctl context use` has chosen
    return home


@pytest.fixture
def fm_fake(fm_home: Path) -> Iterator[ScriptedLauncher]:  # noqa: ARG001
    """All of the test's calls go to a fresh fake backend. Set `fm_fake.script` to say what its trainings do."""
    import fm
    from fm.backends.fake import open_fake

    backend = open_fake()
    with fm.backend(backend):
        yield backend.launcher
