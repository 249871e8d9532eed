"""Backup and restore of a store, from either kind of database into either."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fm.backends.base import PAGE_LIMIT, RunFilter
from fm.cli.main import run as ftctl
from fm.errors import Conflict, Damaged, RequestError, StoreError, Unauthorised
from fm.lifecycle import Status
from fm.store.backup import back_up, restore, upgrade
from fm.store.schema import metadata
from fm.store.store import RunStore
from fm.types import Principal
from support.stores import empty_database, moment, new_run
from support.teams import TwoTeams

ROOT = Principal(user="root")


@pytest.fixture
def filled(store_url: str, tmp_path: Path) -> str:
    """A store with runs, a model, a data set, a user with a token, and a grant."""
    teams = TwoTeams(store_url, tmp_path / "runs")
    teams.finish(teams.create(teams.red, register_to="a.b.c", tags={"ü": "\x1b"}))
    teams.create(teams.blue)
    teams.dataset("red", "0" * 64, sensitive=True)
    teams.admin.add_user("red", "ada")
    teams.admin.make_token("red", "ada")
    teams.admin.grant("red", "model", "a.b.c", "blue")
    teams.close()
    return store_url


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return empty_database(request, tmp_path / "target.db")


def content(url: str) -> dict[str, list[Any]]:
    store = RunStore(url)
    with store.database.read() as connection:
        rows = {name: [tuple(row) for row in connection.execute(select(t))] for name, t in metadata.tables.items()}
    store.close()
    return {name: sorted(found, key=repr) for name, found in rows.items()}


def test_a_store_is_made_anew_in_either_kind_of_database(filled: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "store.jsonl"
    made = back_up(filled, file, ROOT, moment())
    assert file.stat().st_mode & 0o777 == 0o600
    assert restore(target, file, ROOT, moment()) == made
    before, after = content(filled), content(target)
    assert sorted(after.pop("audit"))[:-1] == sorted(before.pop("audit"))
    assert after.pop("audit_head") != before.pop("audit_head")
    assert after == before
    store = RunStore(target)
    admin = store.administration(ROOT)
    assert [entry.action for entry in admin.audit(2)] == ["store.restore", "store.backup"]
    assert admin.verify_audit().entries == len(admin.audit(1000))
    claimed = store.claim("agent", "host", free=1, total=1)
    assert claimed and claimed[0].team == "blue"
    store.close()


def test_a_token_works_in_the_restored_store_and_a_revoked_one_does_not(
    filled: str, target: str, tmp_path: Path
) -> None:
    store = RunStore(filled)
    admin = store.administration(ROOT)
    good, bad = admin.make_token("red", "ada"), admin.make_token("red", "ada")
    admin.revoke_token(bad.id)
    store.close()
    back_up(filled, tmp_path / "b", ROOT, moment())
    assert good.text.rsplit("_", 1)[1] not in (tmp_path / "b").read_text()
    restore(target, tmp_path / "b", ROOT, moment())
    restored = RunStore(target)
    assert restored.access.authenticate(good.text).user == "ada"
    with pytest.raises(Unauthorised):
        restored.access.authenticate(bad.text)
    restored.close()


def test_a_backup_overwrites_nothing_and_neither_does_a_restore(filled: str, tmp_path: Path) -> None:
    file = tmp_path / "b"
    back_up(filled, file, ROOT, moment())
    before = file.read_bytes()
    with pytest.raises(Conflict):
        back_up(filled, file, ROOT, moment())
    assert file.read_bytes() == before
    kept = content(filled)
    with pytest.raises(Conflict):
        restore(filled, file, ROOT, moment())
    assert content(filled) == kept
    with pytest.raises(RequestError):
        back_up(filled, tmp_path / "none" / "b", ROOT, moment())
    with pytest.raises(Conflict, match="no run store"):
        back_up(f"sqlite:///{tmp_path / 'empty.db'}", tmp_path / "c", ROOT, moment())
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_damaged_backup_is_not_restored_in_any_part(filled: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "b"
    back_up(filled, file, ROOT, moment())
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = {
        "cut": whole[: len(whole) // 2],
        "last line lost": b"".join(lines[:-1]),
        "a row lost": b"".join(lines[:5] + lines[6:]),
        "rows swapped": b"".join([*lines[:5], lines[6], lines[5], *lines[7:]]),
        "a byte": whole.replace(b"QUEUED", b"FAILED", 1),
        "empty": b"",
        "no backup": b"hello\n",
        "binary": bytes(range(256)),
        "a list": b"[]\n[]\n",
    }
    for how, text in damaged.items():
        file.write_bytes(text)
        with pytest.raises(Damaged):
            restore(target, file, ROOT, moment())
        with pytest.raises(Conflict, match="no run store"):  # nothing was made
            upgrade(target, ROOT, moment())
        assert how
    file.write_bytes(whole)
    restore(target, file, ROOT, moment())


def test_a_backup_of_a_newer_ftctl_is_refused(target: str, tmp_path: Path) -> None:
    head = json.dumps({"ftctl": "9.0.0", "migrations": ["0001-first-schema", "9999-future"]}).encode() + b"\n"
    end = json.dumps({"rows": 0, "sha256": hashlib.sha256(head).hexdigest()}).encode() + b"\n"
    (tmp_path / "b").write_bytes(head + end)
    with pytest.raises(StoreError, match="newer ftctl"):
        restore(target, tmp_path / "b", ROOT, moment())


def test_a_backup_of_an_older_ftctl_is_restored_and_brought_up_to_date(target: str, tmp_path: Path) -> None:
    row = {"team": "red", "name": "a.b.c", "version": 1, "run_id": None, "created_at": 1.0, "record": '{"bytes": 7}'}
    lines = [
        {"ftctl": "0.0.9", "migrations": ["0001-first-schema"]}, {"table": "models", "row": row},
    ]  # fmt: skip
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    end = json.dumps({"rows": 1, "sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n"
    (tmp_path / "b").write_bytes(text + end)
    restore(target, tmp_path / "b", ROOT, moment())
    store = RunStore(target)
    assert [team.name for team in store.administration(ROOT).teams()] == ["local", "red"]
    with store.database.read() as connection:
        assert connection.exec_driver_sql("SELECT bytes FROM models").scalar() == 7
    store.close()


def test_a_backup_under_load_is_of_one_moment(store_url: str, tmp_path: Path) -> None:
    store, stop = RunStore(store_url), threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set() and len(written) < PAGE_LIMIT:  # one page shows them all
            written.append(store.create(new_run(), str(len(written)), ROOT).id)

    writer = threading.Thread(target=write)
    writer.start()
    while len(written) < 20:
        pass
    back_up(store_url, tmp_path / "b", ROOT, moment())
    stop.set()
    writer.join()
    store.close()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    restore(other, tmp_path / "b", ROOT, moment())
    copy = RunStore(other)
    runs = copy.list("local", RunFilter(limit=PAGE_LIMIT, statuses=frozenset({Status.QUEUED})))
    assert {run.id for run in runs} == set(written[: len(runs)])
    assert copy.administration(ROOT).verify_audit().entries == len(runs) + 2  # the backup and the restore
    copy.close()


def test_the_commands_say_what_they_did(
    filled: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "b")
    assert ftctl(["admin", "--database", filled, "backup", file]) == 0
    digest = capsys.readouterr().out.strip()
    assert ftctl(["admin", "--database", target, "restore", file]) == 0
    assert capsys.readouterr().out.strip() == digest
    assert ftctl(["admin", "--database", target, "upgrade"]) == 0
    assert capsys.readouterr().out == ""
    assert ftctl(["admin", "--database", target, "restore", file]) == Conflict.exit_code
    assert ftctl(["admin", "--database", filled, "backup", file]) == Conflict.exit_code
    assert ftctl(["admin", "--database", target, "restore", str(tmp_path / "none")]) == RequestError.exit_code
