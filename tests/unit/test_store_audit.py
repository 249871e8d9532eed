"""The audit log: a change to what was written is found."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from fm.errors import Damaged, FMError
from fm.store import audit
from fm.store.schema import NO_ENTRY
from fm.store.store import RunStore
from fm.types import Principal
from support.stores import moment

WHO = Principal(user="root")
ENTRIES = 12
WAYS = ("change", "forge", "remove", "swap", "repeat", "cut", "insert")


def write_entries(store: RunStore, count: int = ENTRIES) -> None:
    for number in range(count):
        with store.database.write() as connection:
            audit.record(connection, WHO, moment(number), "run.create", f"run-{number}", note="\0 ü \x1b[31m")


def test_entries_are_read_back_as_they_were_written(store_url: str) -> None:
    store = RunStore(store_url)
    write_entries(store)
    entries = store.administration(WHO).audit(1000)
    assert [entry.object for entry in entries] == [f"run-{number}" for number in reversed(range(ENTRIES))]
    assert entries[0].time == moment(ENTRIES - 1) and entries[0].detail == {"note": "\0 ü \x1b[31m"}
    assert [entry.previous for entry in entries] == [*(entry.digest for entry in entries[1:]), NO_ENTRY]
    head = store.administration(WHO).verify_audit()
    assert (head.entries, head.digest) == (ENTRIES, entries[0].digest)
    store.close()


def test_many_who_write_at_once_make_one_chain(store_url: str) -> None:
    store = RunStore(store_url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_entries(store, 5), range(8)))
    assert store.administration(WHO).verify_audit().entries == 40
    store.close()


def test_the_database_itself_refuses_a_slip(store_url: str) -> None:
    store = RunStore(store_url)
    write_entries(store)
    for statement in ("UPDATE audit SET record = '{}'", "DELETE FROM audit"):
        with pytest.raises(FMError, match="append-only") as error, store.database.write() as connection:
            connection.exec_driver_sql(statement)
        assert isinstance(error.value.__cause__, DBAPIError)
    assert store.administration(WHO).verify_audit().entries == ENTRIES
    store.close()


def test_an_entry_of_a_transaction_that_fails_is_not_there(store_url: str) -> None:
    store = RunStore(store_url)
    with pytest.raises(ZeroDivisionError), store.database.write() as connection:
        audit.record(connection, WHO, moment(), "run.create", "run-1")
        raise ZeroDivisionError
    assert store.administration(WHO).verify_audit() == audit.AuditHead(0, NO_ENTRY)
    store.close()


def test_a_head_that_was_noted_is_found_in_a_chain_that_went_on(store_url: str) -> None:
    store = RunStore(store_url)
    write_entries(store)
    admin = store.administration(WHO)
    noted = admin.verify_audit().digest
    write_entries(store)
    assert admin.verify_audit(noted).entries == 2 * ENTRIES
    with pytest.raises(Damaged, match="digest"):
        admin.verify_audit("f" * 64)
    store.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with entries, whose guard against slips is gone: somebody means it."""
    file = tmp_path_factory.mktemp("audit") / "store.db"
    store = RunStore(f"sqlite:///{file}")
    write_entries(store)
    with store.database.write() as connection:
        for trigger in ("audit_no_UPDATE", "audit_no_DELETE"):
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
    store.close()
    return file


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(way=st.sampled_from(WAYS), data=st.data())
def test_whatever_is_changed_removed_or_moved_is_found(
    written: Path, tmp_path: Path, way: str, data: st.DataObject
) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(written.read_bytes())
    at = data.draw(st.integers(1, ENTRIES))
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        tamper(connection, way, at, data)
    store = RunStore(f"sqlite:///{copy}")
    with pytest.raises(Damaged):
        store.administration(WHO).verify_audit()
    store.close()


def tamper(connection: sqlite3.Connection, way: str, at: int, data: st.DataObject) -> None:
    """Changes the chain; in "forge" and "insert" by somebody who makes the digest of the entry itself right."""
    [text] = connection.execute("SELECT record FROM audit WHERE seq = ?", (at,)).fetchone()
    other = data.draw(st.integers(1, ENTRIES).filter(lambda number: number != at))
    if way == "change":
        place = data.draw(st.integers(0, len(text) - 1))
        changed = text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
        connection.execute("UPDATE audit SET record = ? WHERE seq = ?", (changed, at))
    elif way == "forge":
        changed = text.replace('"user": "root"', '"user": "mallory"')
        values = (changed, audit._digest(changed), at)
        connection.execute("UPDATE audit SET record = ?, digest = ? WHERE seq = ?", values)
    elif way == "remove":
        connection.execute("DELETE FROM audit WHERE seq = ?", (at,))
    elif way == "swap":
        for old, new in ((at, -1), (other, at), (-1, other)):
            connection.execute("UPDATE audit SET seq = ? WHERE seq = ?", (new, old))
    elif way == "repeat":
        copied = "SELECT record, digest FROM audit WHERE seq = ?"
        connection.execute(f"UPDATE audit SET (record, digest) = ({copied}) WHERE seq = ?", (at, other))
    elif way == "cut":
        connection.execute("DELETE FROM audit WHERE seq >= ?", (at,))
    else:
        for number in range(ENTRIES, at - 1, -1):
            connection.execute("UPDATE audit SET seq = ? WHERE seq = ?", (number + 1, number))
        connection.execute("INSERT INTO audit VALUES (?, ?, ?)", (at, text, audit._digest(text)))
