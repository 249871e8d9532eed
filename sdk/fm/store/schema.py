"""The tables, and the named steps by which a store of any age becomes one of this version.

A run's whole record is one JSON column; beside it stand only the columns that are searched, sorted or fenced by.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
)

from fm.errors import StoreError

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, index=True),
    Column("team", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("status", String, nullable=False),
    Column("experiment_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("idempotency_key", String, nullable=False),
    Column("record", Text, nullable=False),
    Column("last_seq", Integer, nullable=False, default=0),
    Column("log_bytes", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    # The lease: who may write on behalf of the run, and until when. `lease_epoch` fences late writers.
    Column("lease_agent", String),
    Column("lease_host", String),
    Column("lease_epoch", Integer, nullable=False, default=0),
    Column("lease_expires", Float),
    # What the lease holder must know to go on after a restart (JSON): the stage, its handle, how far it has read.
    Column("work", Text),
    UniqueConstraint("team", "idempotency_key"),
    Index("runs_by_time", "team", "created_at", "id"),
    Index("runs_by_status", "status", "not_before"),
)

events = Table(
    "events",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer),
    Column("line", Integer),
    Column("record", Text, nullable=False),
    UniqueConstraint("run_id", "attempt", "line"),
)

metrics = Table(
    "metrics",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Float, nullable=False),
    Column("time", Float, nullable=False),
    Index("metrics_by_step", "run_id", "step"),
)

logs = Table(
    "logs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("run_id", String, unique=True),
    Column("created_at", Float, nullable=False),
    Column("record", Text, nullable=False),
)

model_names = Table(
    "model_names",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    # Counts on when a version is removed: a number never means two things.
    Column("last_version", Integer, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("team", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", Integer, nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("id", String, primary_key=True),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", String, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("drain", Integer, nullable=False, default=0),
)

_migrations = Table(
    "migrations",
    metadata,
    Column("name", String, primary_key=True),
)


def _first_schema(connection: Connection) -> None:
    metadata.create_all(connection, tables=[runs, events, metrics, logs, models, model_names, aliases, agents])


MIGRATIONS: list[tuple[str, Callable[[Connection], None]]] = [
    ("0001-first-schema", _first_schema),
]
"""Steps in order. A step that has been released is never changed; a new one is added below it."""


def applied(connection: Connection) -> list[str]:
    """Names of the steps that this store has been through."""
    if not inspect(connection).has_table(_migrations.name):
        return []
    return list(connection.execute(select(_migrations.c.name)).scalars())


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


def migrate(connection: Connection) -> None:
    """Takes the store to this version, inside the caller's one transaction: all steps or none."""
    done = applied(connection)
    _migrations.create(connection, checkfirst=True)
    if is_current(done):
        return
    for name, step in MIGRATIONS:
        if name not in done:
            step(connection)
            connection.execute(_migrations.insert().values(name=name))
