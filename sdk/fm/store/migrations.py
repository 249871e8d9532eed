"""The named steps by which a store of any age becomes one of this version."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection

from sqlalchemy import Connection, insert, inspect, select, update
from sqlalchemy.schema import CreateColumn

from fm.errors import StoreError
from fm.store.schema import (
    NO_ENTRY,
    agents,
    aliases,
    audit,
    audit_head,
    datasets,
    events,
    grants,
    logs,
    metadata,
    metrics,
    migrations,
    model_names,
    models,
    runs,
    teams,
    tokens,
    turns,
    users,
)


def _first_schema(connection: Connection) -> None:
    metadata.create_all(connection, tables=[runs, events, metrics, logs, models, model_names, aliases, agents])


def _access(connection: Connection) -> None:
    new = [datasets, teams, turns, users, tokens, grants, audit, audit_head]
    metadata.create_all(connection, tables=new)
    # A new store has these from the first step on.
    for column in (runs.c.priority, runs.c.disk_bytes, models.c.bytes):
        table = column.table.name
        if column.name not in {known["name"] for known in inspect(connection).get_columns(table)}:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {definition}")
    connection.exec_driver_sql("DROP INDEX IF EXISTS runs_by_status")
    for index in runs.indexes:
        index.create(connection, checkfirst=True)
    for row in connection.execute(select(models)).all():
        at = (models.c.team == row.team, models.c.name == row.name, models.c.version == row.version)
        connection.execute(update(models).where(*at).values(bytes=json.loads(row.record)["bytes"]))
    known = {"local", *connection.execute(select(runs.c.team).union(select(models.c.team))).scalars()}
    connection.execute(insert(teams), [{"name": team, "created_at": time.time()} for team in sorted(known)])
    connection.execute(insert(audit_head).values(seq=0, digest=NO_ENTRY))
    for statement in _APPEND_ONLY[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def _pages(connection: Connection) -> None:
    for index in runs.indexes:
        index.create(connection, checkfirst=True)


_APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_no_{change} BEFORE {change} ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END"
        for change in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'append-only'; END $$",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()",
    ],
}
"""Guards against slips; what the digests are for is a change on purpose."""

MIGRATIONS: list[tuple[str, Callable[[Connection], None]]] = [
    ("0001-first-schema", _first_schema),
    ("0002-access", _access),
    ("0003-pages", _pages),
]
"""Steps in order. A step that has been released is never changed; a new one is added below it."""


def applied(connection: Connection) -> list[str]:
    """Names of the steps that this store has been through."""
    if not inspect(connection).has_table(migrations.name):
        return []
    return list(connection.execute(select(migrations.c.name)).scalars())


def is_current(names: list[str]) -> bool:
    """Whether a store that went through `names` is one of this version.

    Raises:
        StoreError: it belongs to a newer ftctl.
    """
    known = [name for name, _ in MIGRATIONS]
    if unknown := sorted(set(names) - set(known)):
        raise StoreError(
            f"the run store belongs to a newer ftctl (it has {unknown[-1]})", hint="pip install --upgrade ftctl"
        )
    return len(names) == len(known)


def migrate(connection: Connection, steps: Collection[str] | None = None) -> None:
    """Takes the store to this version, or as far as `steps` go, in the caller's one transaction: all steps or none."""
    done = applied(connection)
    migrations.create(connection, checkfirst=True)
    if is_current(done):
        return
    for name, step in MIGRATIONS:
        if name not in done and (steps is None or name in steps):
            step(connection)
            connection.execute(migrations.insert().values(name=name))
