"""Files appear whole or not at all, and a folder is whole by its manifest."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from fm.errors import Conflict, DiskFull, Unavailable
from fm.files import (
    all_below,
    atomic_folder,
    atomic_writer,
    disk_errors,
    make_private,
    read_manifest,
    seal,
    size_of,
    write_json,
)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = make_private(tmp_path / "folder") / "value.json"
    write_json(target, {"old": 1})
    with pytest.raises(RuntimeError), atomic_writer(target) as file:
        file.write(b"half")
        raise RuntimeError("killed")
    assert target.read_text() == '{\n "old": 1\n}'
    assert [path.name for path in target.parent.iterdir()] == ["value.json"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_folders_are_private(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = make_private(tmp_path / "checkpoint" / "sub").parent
    (folder / "weights").write_bytes(b"x" * 1000)
    (folder / "sub" / "state").write_bytes(b"y")
    seal(folder, step=3)
    return folder


def test_a_sealed_folder_is_whole_and_keeps_what_was_said_of_it(sealed: Path) -> None:
    manifest = read_manifest(sealed, verify=True)
    assert manifest is not None and manifest["step"] == 3
    assert set(manifest["files"]) == {"weights", "sub/state"}


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "no manifest", "half manifest", "a list"])
def test_a_damaged_folder_is_not_whole(sealed: Path, damage: str) -> None:
    match damage:
        case "missing":
            (sealed / "sub" / "state").unlink()
        case "truncated":
            os.truncate(sealed / "weights", 999)
        case "flipped":
            (sealed / "weights").write_bytes(b"x" * 999 + b"z")
        case "no manifest":
            (sealed / "manifest.json").unlink()
        case "half manifest":
            os.truncate(sealed / "manifest.json", 20)
        case _:
            (sealed / "manifest.json").write_text("[]")
    assert read_manifest(sealed, verify=True) is None


def test_a_full_disk_is_said_so() -> None:
    full = Path("/dev/full")
    with pytest.raises(DiskFull), disk_errors(full), full.open("wb", buffering=0) as file:
        file.write(b"x")


def test_a_folder_that_may_not_be_written_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="owner and mode"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with atomic_folder(target) as unfinished:
        (unfinished / "weights").write_bytes(b"123")
        seal(unfinished, kind="full")
        assert not target.exists()
    assert read_manifest(target, verify=True) is not None
    assert list(target.parent.iterdir()) == [target]


def test_of_a_folder_that_failed_nothing_remains(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "new" / "model") as unfinished:
        (unfinished / "weights").write_bytes(b"123")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_others_made_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with pytest.raises(Conflict, match="exists already"), atomic_folder(target) as unfinished:
        seal(unfinished)
        target.mkdir()
        (target / "theirs").touch()
    assert [path.name for path in target.parent.rglob("*")] == ["model", "theirs"]


def test_the_size_of_a_folder_survives_what_is_removed_while_it_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "kept").write_bytes(b"four")
    found = all_below(root)
    assert [next(found), next(found)] == [root, root / "a"]
    shutil.rmtree(root / "a")
    assert list(found) == [root / "kept"]
    assert size_of(root) == 4
