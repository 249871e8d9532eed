"""Opening a store: its schema, its place, and what is no store."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from fm.errors import MissingExtra, RequestError, StoreError
from fm.store import migrations
from fm.store.database import Database
from fm.store.store import RunStore
from support.stores import WHO, new_run


def test_an_older_ftctl_refuses_a_newer_store(store_url: str) -> None:
    RunStore(store_url).close()
    engine = create_engine(store_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO migrations (name) VALUES ('9999-from-the-future')")
    engine.dispose()
    with pytest.raises(StoreError, match="newer ftctl"):
        RunStore(store_url)


def test_a_first_opening_by_many_makes_one_schema(store_url: str) -> None:
    def opened(number: int) -> str:
        return RunStore(store_url).create(new_run(), f"key-{number}", WHO).id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(opened, range(6)))) == 6


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        RunStore(f"sqlite:///{tmp_path / 'store.db'}")


def test_an_interrupted_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_connection: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, ("9999-broken", broken)])
    with pytest.raises(RuntimeError):
        RunStore(f"sqlite:///{tmp_path / 'store.db'}")
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "oracle://x"])
def test_a_database_that_is_not_supported_is_refused(url: str) -> None:
    with pytest.raises((RequestError, MissingExtra)):
        RunStore(url)


def test_the_store_of_a_folder_that_others_may_read_is_the_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    RunStore(f"sqlite:///{tmp_path / 'store.db'}").close()
    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600


def test_the_place_of_a_store_is_shown_without_its_password(tmp_path: Path) -> None:
    shared = Database("postgresql+psycopg://ftctl:canary@db.example/team", as_is=True)
    assert shared.place == "postgresql+psycopg://ftctl:***@db.example/team"
    assert Database(f"sqlite:///{tmp_path / 'a.db'}").place == str(tmp_path / "a.db")
