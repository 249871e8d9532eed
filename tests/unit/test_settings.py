"""Settings come from the environment, and a home that can't hold the store is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import fm
from fm.errors import HomeError, RequestError
from fm.settings import Settings, filesystem_of, innermost


def test_the_store_and_the_storage_lie_in_home_unless_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FM_HOME", str(tmp_path / "h"))
    settings = Settings.read()
    assert settings.storage.root == tmp_path / "h"
    assert settings.store_url == f"sqlite:///{tmp_path / 'h' / 'ftctl.db'}"
    monkeypatch.setenv("FM_RUNS", str(tmp_path / "shared"))
    monkeypatch.setenv("FM_STORE", "postgresql+psycopg://db/x")
    assert Settings.read().storage.root == tmp_path / "shared"
    assert Settings.read().store_url == "postgresql+psycopg://db/x"


def test_a_setting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_AGENT", "sometimes")
    with pytest.raises(RequestError, match="FM_AGENT"):
        Settings.read()


@pytest.mark.parametrize("home", ["/proc/no-such-folder", "/dev/null/home", "/dev/null"])
def test_a_home_that_cannot_be_written_is_one_clear_error(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_HOME", home)
    with pytest.raises(HomeError, match="FM_HOME") as error:
        fm.list()
    assert "local disk" in error.value.hint


def test_a_home_on_a_network_disk_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FM_HOME", str(tmp_path / "h"))
    monkeypatch.setattr("fm.settings.filesystem_of", lambda _path: "nfs4")
    with pytest.raises(HomeError, match=r"network disk \(nfs4\)"):
        fm.list()


def test_the_file_system_is_that_of_the_innermost_and_latest_mount() -> None:
    mounts = [(Path("/"), "ext4"), (Path("/home"), "xfs"), (Path("/home/ada/net"), "nfs4"), (Path("/home"), "btrfs")]
    assert innermost(mounts, Path("/home/ada/net/fm")) == "nfs4"
    assert innermost(mounts, Path("/home/ada")) == "btrfs"
    assert innermost(mounts, Path("/homes")) == "ext4"


def test_it_agrees_with_the_system(tmp_path: Path) -> None:
    told = subprocess.run(["stat", "-f", "-c", "%T", "/proc"], capture_output=True, text=True, check=False).stdout
    if told.strip():
        assert filesystem_of(Path("/proc")) == told.strip()
    assert filesystem_of(tmp_path)
