"""The data sets that teams have in the file store. Called inside the store's transactions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from fm.errors import Conflict, Forbidden, NotFound
from fm.store import runs as run_store
from fm.store.database import take_turns
from fm.store.schema import datasets
from fm.types import Dataset


def add(connection: Connection, new: Dataset) -> Dataset:
    """Notes that the team has the data set. One that it has already stays as it is, but is marked sensitive if `new`
    is; only who runs the server takes such a mark away."""
    keep_still(connection, new.team, new.digest)
    at = (datasets.c.team == new.team, datasets.c.digest == new.digest)
    if row := connection.execute(select(datasets).where(*at)).first():
        if new.sensitive and not row.sensitive:
            connection.execute(update(datasets).where(*at).values(sensitive=1))
        return of_row(row).model_copy(update={"sensitive": bool(row.sensitive or new.sensitive)})
    values = new.model_dump() | {"sensitive": int(new.sensitive), "created_at": new.created_at.timestamp()}
    connection.execute(insert(datasets).values(**values))
    return new


def list_datasets(connection: Connection, team: str, limit: int) -> Sequence[Dataset]:
    """The team's own, newest first."""
    query = select(datasets).where(datasets.c.team == team)
    rows = connection.execute(query.order_by(datasets.c.created_at.desc(), datasets.c.digest).limit(limit))
    return [of_row(row) for row in rows]


def remove(connection: Connection, team: str, digest: str) -> None:
    """Takes the data set from the team. Its files stay until `ftctl gc` finds that no team has it any more.

    Raises:
        NotFound: the team has none of that digest.
        Forbidden: it is marked sensitive: with it would go what withholds its runs' samples, and sent once more it
            would be unmarked.
        Conflict: a run that has not ended uses it.
    """
    keep_still(connection, team, digest)
    at = (datasets.c.team == team, datasets.c.digest == digest)
    if connection.execute(select(datasets.c.sensitive).where(*at)).scalar():
        raise Forbidden(
            f"data set {digest[:12]}… is marked sensitive, and stays as long as it is",
            hint=f"whoever runs the server can unmark it: ftctl admin data mark {team} {digest} --not-sensitive",
        )
    for run in run_store.unfinished(connection):
        if digest in {data.digest for data in (run.train_data, run.eval_data) if data and data.stored}:
            which = f"run {run.name}" if run.team == team else "a run of another team"
            raise Conflict(f"data set {digest[:12]}… can't be removed: {which} needs it", hint="wait for its end")
    if not connection.execute(delete(datasets).where(*at)).rowcount:
        raise NotFound(f"team {team} has no data set {digest[:12]}…", hint="only its own team can remove a data set")


def digests(connection: Connection) -> frozenset[str]:
    """Those of all teams' data sets."""
    return frozenset(connection.execute(select(datasets.c.digest)).scalars())


def keep_still(connection: Connection, team: str, digest: str) -> None:
    """Nobody adds or removes the team's data set of that digest until the transaction ends."""
    take_turns(connection, f"data {team} {digest}")


def of_row(row: Row[Any]) -> Dataset:
    """The data set that a row of the table describes."""
    created = datetime.fromtimestamp(row.created_at, UTC)
    return Dataset(**(dict(row._mapping) | {"sensitive": bool(row.sensitive), "created_at": created}))
