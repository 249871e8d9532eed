"""A file store, in a folder and on an object store: sealed folders, whole or not there."""

from __future__ import annotations

import json
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fm.errors import Damaged, FMError, NotFound, RequestError, Unavailable
from fm.files import read_manifest
from fm.filestore import FileStore, FolderStore, check_key, open_store
from fm.layout import MANIFEST
from fm.objectstore import ObjectStore
from support.files import digests, s3_server, sealed


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(params=["folder", "memory", "s3"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], FileStore]:
    """Opens the store as another machine does, which has a cache of its own."""
    url = {"folder": lambda: str(tmp_path / "store"), "memory": lambda: f"memory://{uuid.uuid4()}"}.get(
        request.param, lambda: f"{request.getfixturevalue('bucket')}/{uuid.uuid4()}"
    )()
    return lambda machine: open_store(url, tmp_path / machine)


@pytest.fixture
def store(open_again: Callable[[str], FileStore]) -> FileStore:
    return open_again("here")


def test_what_is_put_is_fetched_with_equal_digests_on_another_machine(
    store: FileStore, open_again: Callable[[str], FileStore], tmp_path: Path
) -> None:
    made = sealed(tmp_path / "made", a="one", b="two" * 100_000)
    store.put("models/a.b.c/run-1", made)
    assert digests(open_again("there").fetch("models/a.b.c/run-1")) == digests(made)
    assert store.manifest("models/a.b.c/run-1") == read_manifest(made)
    assert store.usage("models/a.b.c/run-1").bytes > 300_000


def test_a_moved_folder_is_gone_from_its_place(store: FileStore, tmp_path: Path) -> None:
    made = sealed(tmp_path / "made", a="one")
    store.put("data/1", made, move=True)
    assert not made.exists()
    assert (store.fetch("data/1") / "a").read_text() == "one"


def test_what_is_there_stays_and_counts_as_just_written(store: FileStore, tmp_path: Path) -> None:
    store.put("data/1", sealed(tmp_path / "made", a="one"))
    before = store.usage("data/1")
    store.put("data/1", sealed(tmp_path / "same", a="one"), move=True)
    after = store.usage("data/1")
    assert after.bytes == before.bytes and after.touched >= before.touched
    assert not (tmp_path / "same").exists()


def test_a_folder_without_a_whole_manifest_is_not_stored(store: FileStore, tmp_path: Path) -> None:
    made = sealed(tmp_path / "made", a="one")
    (made / "a").unlink()
    with pytest.raises(NotFound):
        store.put("data/1", made)
    assert store.manifest("data/1") is None and store.local("data/1") is None


def test_what_is_missing_is_said_so(store: FileStore, tmp_path: Path) -> None:
    store.put("data/1", sealed(tmp_path / "made", a="one"))
    for ask in (lambda: store.fetch("data/2"), lambda: store.open("data/2", "a"), lambda: store.open("data/1", "b")):
        with pytest.raises(NotFound):
            ask()
    assert store.list("nothing") == []
    store.delete("data/2")


def test_a_file_is_read_from_an_offset(store: FileStore, tmp_path: Path) -> None:
    store.put("data/1", sealed(tmp_path / "made", a="0123456789"))
    with store.open("data/1", "a", offset=4) as file:
        assert file.read(3) == b"456"
        assert file.read() == b"789"


def test_keys_are_listed_one_level_deep_and_deleted_with_all_below(store: FileStore, tmp_path: Path) -> None:
    for number in (1, 2):
        store.put(f"runs/r{number}/attempts/1/checkpoints/step-7", sealed(tmp_path / f"made{number}", a="one"))
    assert store.list("runs") == ["runs/r1", "runs/r2"]
    assert store.list("runs/r1/attempts/1/checkpoints") == ["runs/r1/attempts/1/checkpoints/step-7"]
    store.delete("runs/r1")
    assert store.list("runs") == ["runs/r2"]
    assert store.manifest("runs/r1/attempts/1/checkpoints/step-7") is None


@pytest.mark.parametrize("key", ["", "/etc", "a/../b", "..", "a//b", "a\\b", "a\0b", "a/.", "x" * 300, "a\nb"])
def test_no_key_leads_out_of_the_store(store: FileStore, key: str, tmp_path: Path) -> None:
    made = sealed(tmp_path / "made", a="one")
    for ask in (store.manifest, store.fetch, store.local, store.list, store.usage, store.delete):
        with pytest.raises(RequestError):
            ask(key)
    with pytest.raises(RequestError):
        store.put(key, made)


def test_a_folder_store_makes_second_names_instead_of_copies(tmp_path: Path) -> None:
    made = sealed(tmp_path / "made", a="one")
    FolderStore(tmp_path / "store").put("data/1", made)
    assert (tmp_path / "store" / "data" / "1" / "a").stat().st_ino == (made / "a").stat().st_ino


def test_what_lies_in_the_folder_store_already_is_used_where_it_lies(tmp_path: Path) -> None:
    made = sealed(tmp_path / "runs" / "r1" / "final", a="one")
    store = FolderStore(tmp_path)
    store.put("runs/r1/final", made, move=True)
    assert store.fetch("runs/r1/final") == store.local("runs/r1/final") == made
    assert (made / "a").read_text() == "one"


def test_a_shared_folder_store_gives_its_own_group_and_mode_to_what_is_stored(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2770)
    FolderStore(root).put("models/a.b.c/run-1", sealed(tmp_path / "made", a="one"), move=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o777 for path in root.rglob("*")}
    assert modes == {"models": 0o770, "a.b.c": 0o770, "run-1": 0o770, "a": 0o660, MANIFEST: 0o660}


def test_a_private_folder_store_stays_private(tmp_path: Path) -> None:
    FolderStore(tmp_path / "store").put("models/a.b.c/run-1", sealed(tmp_path / "made", a="one"))
    assert all(not stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (tmp_path / "store").rglob("*"))


class TestCache:
    """The object store's copies on this machine."""

    @pytest.fixture
    def remote(self, tmp_path: Path) -> ObjectStore:
        store = ObjectStore(f"memory://{uuid.uuid4()}", tmp_path / "cache")
        store.put("data/1", sealed(tmp_path / "made", a="one", b="two"))
        return store

    def test_a_damaged_object_is_never_taken_for_whole(self, remote: ObjectStore, tmp_path: Path) -> None:
        remote._files.pipe_file(f"{remote._root}/data/1/b", b"TWO")
        with pytest.raises(Damaged, match="data/1/b"):
            remote.fetch("data/1")
        assert remote.local("data/1") is None
        assert list((tmp_path / "cache" / "data").iterdir()) == []

    def test_a_manifest_that_names_files_outside_is_refused(self, remote: ObjectStore, tmp_path: Path) -> None:
        evil = {"files": {"../../../evil": {"bytes": 3, "sha256": "0" * 64}}}
        remote._files.pipe_file(f"{remote._root}/data/1/{MANIFEST}", json.dumps(evil).encode())
        with pytest.raises(RequestError):
            remote.fetch("data/1")
        assert not list(tmp_path.rglob("evil"))

    def test_a_damaged_copy_is_fetched_again(self, remote: ObjectStore) -> None:
        folder = remote.fetch("data/1")
        (folder / "a").write_text("longer than it was")
        assert (remote.fetch("data/1") / "a").read_text() == "one"

    def test_several_threads_fetch_one_key_once(self, remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        begun: list[str] = []
        download = remote._download
        monkeypatch.setattr(remote, "_download", lambda *args: (begun.append("once"), download(*args)))
        threads = [threading.Thread(target=remote.fetch, args=("data/1",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert begun == ["once"]

    def test_without_its_manifest_nothing_is_there(self, remote: ObjectStore) -> None:
        remote._files.rm_file(f"{remote._root}/data/1/{MANIFEST}")
        assert remote.manifest("data/1") is None
        with pytest.raises(NotFound):
            remote.fetch("data/1")


def test_an_object_store_that_cannot_be_reached_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://bucket", tmp_path)
    with pytest.raises(Unavailable, match="s3://bucket"):
        store.manifest("data/1")


def test_a_url_that_fsspec_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FMError, match="FM_FILES"):
        open_store("nothing-like-it://x", tmp_path)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}", tmp_path).where == str(tmp_path)


def test_keys_that_the_layout_makes_are_taken() -> None:
    assert check_key("runs/run-1/attempts/1/checkpoints/.step-00000001.12.tmp")
    assert os.sep == "/"
