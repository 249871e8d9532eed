"""A run store as one file of JSON lines, which SQLite and PostgreSQL both read: backup, restore, and upgrade.

The first line says which steps the schema had been through, each further one is a row, and the last holds how many rows
there are and the SHA-256 of all lines before it. Run folders and weights are not in it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, delete, insert, inspect, select

import fm
from fm.errors import Conflict, Damaged, RequestError
from fm.files import atomic_writer, disk_errors
from fm.store import audit
from fm.store.database import Database, take_turns
from fm.store.migrations import applied, is_current, migrate
from fm.store.schema import audit_head, metadata, migrations, teams
from fm.types import Principal

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup's file holds."""

    rows: int
    sha256: str
    """Of all its lines but the last, which holds it too."""


def back_up(url: str, file: Path, who: Principal, now: datetime) -> Backup:
    """Writes the store at `url` to `file`, as it was at one moment; others go on writing to it meanwhile.

    Raises:
        Conflict: there is something at `file` already, or no store at `url`.
        RequestError: its folder does not exist.
    """
    if file.exists():
        raise Conflict(f"{file} exists already", hint="a backup overwrites nothing: name another file")
    if not file.parent.is_dir():
        raise RequestError(f"{file.parent} is no folder", field="file", hint="make it first")
    with _opened(url) as database:
        with database.write() as connection:
            if not (steps := applied(connection)):
                raise Conflict("there is no run store in that database", hint="name the one that is used")
            if is_current(steps):  # an older one may have no audit log
                audit.record(connection, who, now, "store.backup", file.name)
        with disk_errors(file), tempfile.TemporaryDirectory(dir=file.parent) as folder:
            if database.is_sqlite:
                # A long read would keep writers out: copied first, which takes a moment.
                copy = Path(folder) / "store.db"
                original = str(database.engine.url.database)
                with closing(sqlite3.connect(original)) as source, closing(sqlite3.connect(copy)) as target:
                    source.backup(target)
                with _opened(f"sqlite:///{copy}") as copied:
                    return _dump(copied, file)
            return _dump(database, file)


def restore(url: str, file: Path, who: Principal, now: datetime) -> Backup:
    """Makes the store in `file` anew in the empty database at `url`, all of it or nothing, and brings its schema up to
    this version.

    Raises:
        Damaged: the file is not what was written.
        Conflict: there is a store in that database.
        StoreError: the backup is of a newer ftctl.
    """
    steps, found = _check(file)
    is_current(steps)
    with _opened(url) as database, database.write() as connection:
        take_turns(connection, "migrate")
        if applied(connection):
            raise Conflict("there is a run store in that database already", hint="name an empty database")
        migrate(connection, steps)
        made = set(inspect(connection).get_table_names())
        for table in (teams, audit_head):  # a step puts rows into a new store
            if table.name in made:
                connection.execute(delete(table))
        for name, rows in _batches(file):
            connection.execute(insert(metadata.tables[name]), rows)
        migrate(connection)
        audit.record(connection, who, now, "store.restore", file.name, sha256=found.sha256)
    return found


def upgrade(url: str, who: Principal, now: datetime) -> list[str]:
    """Brings the store's schema up to this version; returns the names of the steps that this took.

    Raises:
        Conflict: there is no store in that database.
    """
    with _opened(url) as database, database.write() as connection:
        take_turns(connection, "migrate")
        before = applied(connection)
        if not before:
            raise Conflict("there is no run store in that database", hint="the first command that uses it makes one")
        migrate(connection)
        if steps := [name for name in applied(connection) if name not in before]:
            audit.record(connection, who, now, "store.upgrade", steps[-1])
        return steps


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    """The database as it is: its schema is left alone."""
    database = Database(url, as_is=True)
    try:
        yield database
    finally:
        database.close()


def _dump(database: Database, file: Path) -> Backup:
    digest, rows = hashlib.sha256(), 0
    with atomic_writer(file) as out, database.snapshot() as connection:
        head = {"ftctl": fm.__version__, "migrations": sorted(applied(connection))}
        for line in _lines(head, connection):
            out.write(line)
            digest.update(line)
            rows += 1
        out.write(_line({"rows": rows - 1, "sha256": digest.hexdigest()}))
    return Backup(rows - 1, digest.hexdigest())


def _lines(head: dict[str, Any], connection: Connection) -> Iterator[bytes]:
    yield _line(head)
    # As they are in that database, which may be an older one.
    found = MetaData()
    found.reflect(connection, only=lambda name, _: name in metadata.tables and name != migrations.name)
    for table in found.sorted_tables:
        for row in connection.execution_options(yield_per=_BATCH).execute(select(table)).mappings():
            yield _line({"table": table.name, "row": dict(row)})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _check(file: Path) -> tuple[list[str], Backup]:
    """The schema's steps and the size of a backup that is whole, so that nothing is written of one that isn't."""
    digest, count, last = hashlib.sha256(), 0, b""
    steps: list[str] = []
    try:
        with file.open("rb") as lines:
            for line in lines:
                if count == 0:
                    steps = json.loads(line)["migrations"]
                else:
                    digest.update(last)
                last, count = line, count + 1
        found = Backup(**json.loads(last))
    except OSError as error:
        raise RequestError(f"{file} can't be read: {error.strerror}", field="file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file) from error
    if (found.sha256, found.rows) != (digest.hexdigest(), count - 2):
        raise _damaged(file)
    return steps, found


def _damaged(file: Path) -> Damaged:
    return Damaged(f"{file} is no whole backup: its digest does not fit", hint="use another one")


def _batches(file: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows of one table at a time."""
    name = ""
    rows: list[dict[str, Any]] = []
    with file.open("rb") as lines:
        next(lines)
        for line in lines:
            value = json.loads(line)
            if rows and (value.get("table") != name or len(rows) == _BATCH):
                yield name, rows
                rows = []
            if "row" in value:
                name = value["table"]
                rows.append(value["row"])
