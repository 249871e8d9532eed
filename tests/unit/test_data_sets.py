"""Data sets of a team: sent once, known by their digest, and what becomes of them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

import fm
from fm.backends.base import NewRun
from fm.backends.stored import StoreBackend
from fm.data import digest, locate
from fm.errors import Conflict, DataChanged, Forbidden, NotFound
from fm.filestore import FolderStore
from fm.layout import Storage
from fm.sending import send
from fm.store.store import RunStore
from fm.types import DataFile, Principal
from fm.uploads import Uploads
from support.data import many_pairs


def backend_of(folder: Path, *, team: str = "local", files: Path | None = None) -> StoreBackend:
    """A backend whose file store is `files`, or lies in its own folder."""
    return StoreBackend(
        "test", RunStore(f"sqlite:///{folder / 'store.db'}"), Storage(folder), Principal(user="ann", team=team),
        tend=lambda: None, poll_seconds=0.0, files=FolderStore(files) if files else None,
    )


@pytest.fixture
def backend(tmp_path: Path) -> StoreBackend:
    return backend_of(tmp_path)


def sent(backend: StoreBackend, path: Path) -> str:
    """The digest under which the backend has it."""
    source = locate(str(path), field="train_data_path")
    name = digest(source).digest
    assert send(backend.files, source, name, rows=None).digest == name
    return name


def test_a_file_that_is_sent_is_there_under_its_digest(backend: StoreBackend, tmp_path: Path) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    name = sent(backend, path)
    [found] = backend.files.list()
    assert (found.digest, found.name, found.bytes) == (name, "pairs.jsonl", path.stat().st_size)
    assert backend.files.listing(name) == [DataFile("pairs.jsonl", path.stat().st_size)]
    with backend.files.read(name, "pairs.jsonl", offset=5) as file:
        assert file.read() == path.read_bytes()[5:]
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_folder_of_files_is_one_data_set(backend: StoreBackend, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in (3, 1, 2):
        many_pairs(folder / f"{number}.jsonl", number)
    name = sent(backend, folder)
    assert [file.name for file in backend.files.listing(name)] == ["1.jsonl", "2.jsonl", "3.jsonl"]


def test_what_the_team_has_already_is_not_sent_again(
    backend: StoreBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    name = sent(backend, path)
    monkeypatch.setattr(Uploads, "append", lambda *_: pytest.fail("sent again"))
    assert sent(backend, path) == name
    assert len(backend.files.list()) == 1


def test_knowing_a_digest_is_no_proof_of_having_the_data(backend: StoreBackend, tmp_path: Path) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    name = sent(backend, path)
    other = backend.scoped(Principal(user="eve", team="other"))
    assert other.files.begin(name, [DataFile("pairs.jsonl", path.stat().st_size)]) == 0
    with pytest.raises(Conflict):
        other.files.finish(name, name="mine")
    with pytest.raises(NotFound):
        other.files.get(name)
    with pytest.raises(NotFound):
        other.files.read(name, "pairs.jsonl")
    assert other.files.list() == []


def test_two_teams_that_have_the_same_data_share_its_bytes(backend: StoreBackend, tmp_path: Path) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    other = backend.scoped(Principal(user="eve", team="other"))
    name = sent(backend, path)
    assert sent(other, path) == name
    backend.files.delete(name)
    assert backend.files.list() == [] and len(other.files.list()) == 1
    with other.files.read(name, "pairs.jsonl") as file:
        assert file.read() == path.read_bytes()


def test_a_lost_answer_to_finish_does_no_harm(backend: StoreBackend, tmp_path: Path) -> None:
    name = sent(backend, many_pairs(tmp_path / "pairs.jsonl", 20))
    assert backend.files.finish(name, name="pairs.jsonl").digest == name


def test_a_sensitive_data_set_is_not_handed_out(backend: StoreBackend, tmp_path: Path) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    name = digest(locate(str(path), field="x")).digest
    backend.files.begin(name, [DataFile("pairs.jsonl", path.stat().st_size)])
    backend.files.append(name, 0, path.read_bytes())
    backend.files.finish(name, name="secret", sensitive=True)
    with pytest.raises(Forbidden):
        backend.files.read(name, "pairs.jsonl")


def test_a_file_that_changes_while_it_is_sent_leaves_nothing(backend: StoreBackend, tmp_path: Path) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    source = locate(str(path), field="train_data_path")
    name = digest(source).digest
    path.write_bytes(path.read_bytes().replace(b"plus", b"PLUS"))
    with pytest.raises(DataChanged):
        send(backend.files, source, name, rows=None)
    assert backend.files.list() == [] and list((tmp_path / "uploads").iterdir()) == []


def test_several_clients_that_send_the_same_at_once_all_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fm.sending.PART", 512)
    path, outcomes = many_pairs(tmp_path / "pairs.jsonl", 400), []
    backend_of(tmp_path).close()

    def client() -> None:
        outcomes.append(sent(backend_of(tmp_path), path))

    clients = [threading.Thread(target=client) for _ in range(5)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert len(outcomes) == 5 and len(set(outcomes)) == 1
    with backend_of(tmp_path).files.read(outcomes[0], "pairs.jsonl") as file:
        assert file.read() == path.read_bytes()


def test_data_stays_where_it_is_if_the_file_store_is_the_own_folder(
    backend: StoreBackend, tmp_path: Path
) -> None:
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    ref = backend.files.put(str(path), digest="0" * 64, bytes=1, rows=20)
    assert ref.path == str(path) and not ref.stored and backend.files.list() == []


def test_a_run_sends_its_data_to_a_file_store_elsewhere(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, files=tmp_path / "elsewhere")
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    run = fm.create("fm/nano-llama", str(path), task_type="INSTRUCTION_FINETUNE", method="full", backend=backend)
    assert run.record.train_data.stored
    with pytest.raises(Conflict, match="needs it"):
        backend.files.delete(run.record.train_data.digest)
    run.cancel()
    path.unlink()
    assert fm.rerun(run).record.train_data.stored
    shutil.rmtree(tmp_path / "elsewhere")


def test_a_run_on_another_teams_data_set_is_refused(tmp_path: Path) -> None:
    mine = backend_of(tmp_path, files=tmp_path / "elsewhere")
    path = many_pairs(tmp_path / "pairs.jsonl", 20)
    run = fm.create("fm/nano-llama", str(path), task_type="INSTRUCTION_FINETUNE", method="full", backend=mine)
    other = mine.scoped(Principal(user="eve", team="other"))
    with pytest.raises(NotFound):
        stolen = NewRun(request=run.record.request, model=run.record.model, train_data=run.record.train_data)
        other.runs.create(stolen, idempotency_key="k")
