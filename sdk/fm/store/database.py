"""Opening the store's database, and one transaction at a time on it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, DBAPIError, InvalidatePoolError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from fm.errors import DiskFull, MissingExtra, RequestError, StoreError
from fm.store import migrations

_BUSY_SECONDS = 60
_CONNECTIONS = 10
"""Connections to PostgreSQL that are kept open. Twice as many may be open at once; the threads of one process gain
nothing by more."""
_TRUSTED_SECONDS = 1.0
"""How long after its last use a connection is used again without asking first whether it still holds."""
_USED = "fm_used"
IN_MEMORY = "sqlite://"


class Database:
    """An SQLite or PostgreSQL database with the store's schema.

    SQLite keeps its rollback journal: versions before 3.51.3 can corrupt a write-ahead log with several writers. Every
    write begins IMMEDIATE, because a transaction that reads first and then wants to write fails at once with "locked".
    """

    def __init__(self, url: str, *, as_is: bool = False) -> None:
        """Opens the database and, unless it is to be taken `as_is`, brings its schema up to date. One that a team
        shares is not changed in passing: others of an older version may be at work on it.

        Raises:
            RequestError: the URL names no database that is supported.
            MissingExtra: its driver is not installed.
            StoreError: it can't be reached, or belongs to a newer ftctl, or, on PostgreSQL, to an older one.
        """
        self.engine = _engine(url)
        # PostgreSQL shows each statement the state of its own moment anyway, so that a BEGIN and a COMMIT around those
        # that only read would be two more questions for nothing.
        self._reading = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        # The one connection of an in-memory database is shared by all threads.
        self._exclusive = threading.RLock() if url == IN_MEMORY else None
        if as_is:
            return
        with self.read() as connection:
            current = migrations.is_current(migrations.applied(connection))
        if not current:
            with self.write() as connection:
                take_turns(connection, "migrate")
                self._bring_up_to_date(connection)

    def _bring_up_to_date(self, connection: Connection) -> None:
        before = migrations.applied(connection)
        if before and not self.is_sqlite and not migrations.is_current(before):
            raise StoreError(
                f"the run store is that of an older ftctl (it ends with {max(before)})",
                hint="end its server and agents, then: ftctl admin upgrade",
            )
        migrations.migrate(connection)

    @property
    def place(self) -> str:
        """The file of SQLite, or the URL without its password."""
        url = self.engine.url
        return (url.database or "memory") if self.is_sqlite else url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """For questions. On SQLite they all see one state of the store, on PostgreSQL each that of its own moment:
        `snapshot` is for those that must agree."""
        with self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction for a long read, in which all tables are of one moment."""
        if self.is_sqlite:
            with self.read() as connection:
                yield connection
            return
        engine = self.engine.execution_options(isolation_level="REPEATABLE READ")
        with engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed when the block ends without an error, and is undone otherwise."""
        with self._transaction(write=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        if self._exclusive:
            self._exclusive.acquire()
        try:
            with (self.engine if write else self._reading).connect() as connection:
                connection.execution_options(fm_write=write)
                with connection.begin():
                    yield connection
        except (DBAPIError, SQLAlchemyError) as error:
            raise _translate(error) from error
        finally:
            if self._exclusive:
                self._exclusive.release()

    def close(self) -> None:
        self.engine.dispose()


def take_turns(connection: Connection, what: str) -> None:
    """Makes transactions that name the same `what` wait for each other. On SQLite all writing ones do so anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(what))))


def upsert_into(connection: Connection, table: Table) -> Any:
    """An INSERT for `table` that has `on_conflict_do_update`, in the dialect of the connection."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # a light command on SQLite need not pay for it

        return postgresql.insert(table)
    return sqlite.insert(table)


def _engine(url: str) -> Engine:
    try:
        if url == IN_MEMORY:
            engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
        elif url.startswith("sqlite"):
            engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": _BUSY_SECONDS})
            _make_private(engine.url.database)
        else:
            engine = create_engine(url, pool_size=_CONNECTIONS, max_overflow=_CONNECTIONS)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the run store's URL needs {error.name}", extra="postgres") from error
    except (SQLAlchemyError, NoSuchModuleError) as error:
        raise RequestError(
            f"FM_STORE can't be used: {error}", field="FM_STORE", hint="write postgresql+psycopg://user@host/database"
        ) from error
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise RequestError(
            f"FM_STORE names a {engine.dialect.name} database", field="FM_STORE", hint="SQLite and PostgreSQL are known"
        )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "checkout", partial(_ask_whether_it_holds, engine))
        event.listen(engine, "checkin", _note_use)
    return engine


def _make_private(file: str | None) -> None:
    """Makes an SQLite file readable by the owner alone, whatever the umask; its journal gets the same mode."""
    with suppress(OSError):  # if it can't be made, connecting says so, and why
        os.close(os.open(file or "", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _ask_whether_it_holds(engine: Engine, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    # Asking before every use would be one question in four. A connection that broke just after its last use costs one
    # StoreError, after which all those from before are given up.
    if time.monotonic() - record.info.get(_USED, math.inf) > _TRUSTED_SECONDS:
        try:
            engine.dialect.do_ping(connection)
        except Exception as error:  # the driver's own
            raise InvalidatePoolError from error  # then the pool opens another


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_USED] = time.monotonic()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("fm_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _translate(error: Exception) -> StoreError | DiskFull | RequestError:
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    if isinstance(error, DataError):
        # Not a matter of the store's state: trying again would not help.
        return RequestError(f"the run store can't hold a value: {reason}", hint="leave out NUL and very large numbers")
    if "disk is full" in reason:
        return DiskFull("no space left for the run store", hint="free some space where FM_HOME lies")
    if "locked" in reason:
        return StoreError("the run store was locked by another process for a minute", hint="try again")
    return StoreError(f"the run store can't be used: {reason}", hint="`ftctl doctor` checks it")
