"""Pages of a team's runs, newest first, each of which costs the same however many runs there are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, or_, select, tuple_, union_all

from fm.backends.base import PAGE_LIMIT, RunFilter
from fm.errors import NotFound
from fm.store.schema import runs
from fm.types import RunRecord

_Place = tuple[float, str]
"""Where a run stands in the order: when it was made, and its id."""


def list_runs(connection: Connection, team: str, wanted: RunFilter) -> list[RunRecord]:
    """The runs that fit, newest first, at most `PAGE_LIMIT`.

    Raises:
        NotFound: there is no run `wanted.cursor` to go on from.
    """
    limit = max(0, min(wanted.limit, PAGE_LIMIT))
    conditions = _conditions(team, wanted)
    after = _place(connection, team, wanted.cursor) if wanted.cursor else None
    if wanted.name is None:
        return [_record(row) for row in _page(connection, conditions, wanted, after, limit)]
    # What the database finds may be more than what fits: as many pages as it takes, one at a time in memory.
    found: list[RunRecord] = []
    while len(found) < limit and (page := _page(connection, conditions, wanted, after, PAGE_LIMIT)):
        found += [_record(row) for row in page if _fits(row, wanted.name)]
        after = (page[-1].created_at, page[-1].id)
    return found[:limit]


def _conditions(team: str, wanted: RunFilter) -> list[ColumnElement[bool]]:
    """Those on all runs; the statuses are not among them."""
    found = [runs.c.team == team]
    if wanted.owners:
        found.append(runs.c.owner.in_(wanted.owners))
    if wanted.experiment_id:
        found.append(runs.c.experiment_id == wanted.experiment_id)
    if wanted.after:
        found.append(runs.c.created_at >= wanted.after.timestamp())
    if wanted.before:
        found.append(runs.c.created_at < wanted.before.timestamp())
    if name := wanted.name:
        ids = [runs.c.id.startswith(beginning, autoescape=True) for beginning in (name, f"run-{name}")]
        found.append(or_(runs.c.name.like(_like(name), escape="\\"), *ids))
    return found


def _page(
    connection: Connection, conditions: Sequence[ColumnElement[bool]], wanted: RunFilter, after: _Place | None,
    limit: int,
) -> Sequence[Row[Any]]:
    if after:
        conditions = [*conditions, tuple_(runs.c.created_at, runs.c.id) < tuple_(*after)]
    newest = (runs.c.created_at.desc(), runs.c.id.desc())
    query = select(runs.c.id, runs.c.name, runs.c.created_at, runs.c.record).where(*conditions)
    query = query.order_by(*newest).limit(limit)
    if wanted.statuses:
        # The index has the runs of one status in order: of each no more are read than one page may need.
        query = _merged([query.where(runs.c.status == status.value) for status in wanted.statuses], limit)
    return connection.execute(query).all()


def _merged(queries: Sequence[Select[Any]], limit: int) -> Select[Any]:
    """The newest of what all `queries` find."""
    each = union_all(*(select(query.subquery()) for query in queries)).subquery()
    return select(each).order_by(each.c.created_at.desc(), each.c.id.desc()).limit(limit)


def _place(connection: Connection, team: str, run_id: str) -> _Place:
    last = select(runs.c.created_at).where(runs.c.team == team, runs.c.id == run_id)
    if (created_at := connection.execute(last).scalar()) is None:
        raise NotFound(f"there is no run {run_id} to go on from")
    return created_at, run_id


def _record(row: Row[Any]) -> RunRecord:
    return RunRecord.model_validate_json(row.record)


def _like(glob: str) -> str:
    """A LIKE pattern that lets through whatever fits the glob, and more where that has brackets."""
    plain, bracket, _ = glob.partition("[")
    escaped = re.sub(r"[\\%_]", r"\\\g<0>", plain)
    return escaped.replace("*", "%").replace("?", "_") + "%" * bool(bracket)


def _fits(row: Row[Any], name: str) -> bool:
    return fnmatch.fnmatchcase(row.name, name) or row.id.startswith((name, f"run-{name}"))
