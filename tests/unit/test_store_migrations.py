"""A store of an earlier version becomes one of this version, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect

from fm.errors import Conflict, StoreError
from fm.lifecycle import Status
from fm.store import migrations
from fm.store.backup import back_up, restore, upgrade
from fm.store.store import RunStore
from fm.types import ModelVersion, Principal
from support.stores import fresh_database, moment, new_run

OLD = Path(__file__).parents[1] / "support" / "schema_0001.sql"
ROOT = Principal(user="root")


@pytest.fixture
def old_url(store_url: str) -> str:
    """A store as the first step of the schema made it, with a run and a model."""
    engine = create_engine(store_url)
    version = ModelVersion(
        name="a.b.c", version=1, kind="full", path="/m", files={}, bytes=3 * 2**31, run_id="run-1", base=None,
        created_at=moment(), team="red",
    )  # fmt: skip
    run = json.dumps({"id": "run-1", "name": "old", "status": "QUEUED", "team": "red", "owner": "ada",
                      "request": new_run().request.model_dump(mode="json"), "created_at": moment().isoformat(),
                      "model": {"kind": "hub", "name": "org/model"},
                      "train_data": {"path": "/d.jsonl", "digest": "0" * 64, "bytes": 1}})  # fmt: skip
    with engine.begin() as connection:
        for statement in OLD.read_text().split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql(
            "INSERT INTO runs (id, name, team, owner, status, experiment_id, created_at, idempotency_key, record, "
            "last_seq, log_bytes, not_before, lease_epoch) VALUES "
            f"('run-1', 'old', 'red', 'ada', 'QUEUED', '', 1.0, 'k', '{run}', 0, 0, 0, 0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO models (team, name, version, run_id, created_at, record) VALUES "
            f"('red', 'a.b.c', 1, 'run-1', 1.0, '{version.model_dump_json()}')"
        )
    engine.dispose()
    return store_url


def shape(engine: Engine) -> dict[str, object]:
    """Tables with their columns, keys and indexes."""
    found = inspect(engine)
    return {
        table: (
            sorted((column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(table)),
            found.get_pk_constraint(table)["constrained_columns"],
            sorted(str(key["column_names"]) for key in found.get_unique_constraints(table)),
            sorted((index["name"], str(index["column_names"])) for index in found.get_indexes(table)),
        )
        for table in sorted(found.get_table_names())
    }


def test_an_older_store_gets_the_shape_of_a_new_one(
    old_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    new = f"sqlite:///{tmp_path / 'new.db'}"
    if not old_url.startswith("sqlite"):
        new = fresh_database(request.getfixturevalue("postgres"))
    shapes = []
    upgrade(old_url, ROOT, moment())
    for url in (old_url, new):
        store = RunStore(url)
        shapes.append(shape(store.database.engine))
        store.close()
    assert shapes[0] == shapes[1]


def test_what_an_older_store_holds_is_kept_and_its_teams_are_known(old_url: str) -> None:
    assert upgrade(old_url, ROOT, moment()) == ["0002-access", "0003-pages"]
    assert upgrade(old_url, ROOT, moment()) == []
    store = RunStore(old_url)
    assert [entry.action for entry in store.administration(ROOT).audit(10)] == ["store.upgrade"]
    assert store.find("red", "old").status is Status.QUEUED
    assert store.model("red", "a.b.c").bytes == 3 * 2**31
    with store.database.read() as connection:
        assert connection.exec_driver_sql("SELECT bytes FROM models").scalar() == 3 * 2**31
    assert [team.name for team in store.administration(ROOT).teams()] == ["local", "red"]
    claimed = store.claim("agent", "host", free=1, total=1)
    assert claimed and claimed[0].id == "run-1"
    store.close()


def test_a_migration_that_is_killed_leaves_the_older_store_as_it_was(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_connection: object) -> None:
        raise KeyboardInterrupt

    engine = create_engine(old_url)
    before = shape(engine)
    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, ("9999-killed", killed)])
    with pytest.raises(KeyboardInterrupt):
        upgrade(old_url, ROOT, moment())
    assert shape(engine) == before
    engine.dispose()
    monkeypatch.undo()
    upgrade(old_url, ROOT, moment())
    RunStore(old_url).close()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_store_on_this_machine_is_brought_up_to_date_by_whatever_opens_it(old_url: str) -> None:
    store = RunStore(old_url)
    assert store.find("red", "old").status is Status.QUEUED
    store.close()


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_a_store_that_a_team_shares_is_not_changed_in_passing(old_url: str) -> None:
    engine = create_engine(old_url)
    before = shape(engine)
    with pytest.raises(StoreError, match=r"older ftctl.*\n.*admin upgrade"):
        RunStore(old_url)
    assert shape(engine) == before
    engine.dispose()


def test_an_older_store_can_be_backed_up_before_it_is_upgraded(old_url: str, tmp_path: Path) -> None:
    assert back_up(old_url, tmp_path / "b", ROOT, moment()).rows == 2
    restore(f"sqlite:///{tmp_path / 'new.db'}", tmp_path / "b", ROOT, moment())
    store = RunStore(f"sqlite:///{tmp_path / 'new.db'}")
    assert (store.find("red", "old").status, store.model("red", "a.b.c").bytes) == (Status.QUEUED, 3 * 2**31)
    store.close()


def test_what_holds_no_store_is_not_upgraded(store_url: str) -> None:
    with pytest.raises(Conflict):
        upgrade(store_url, ROOT, moment())
