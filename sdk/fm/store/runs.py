"""Runs and their history in the store: making, finding, listing, cancelling, and reading what happened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from fm import lifecycle
from fm.backends.base import PAGE_LIMIT, NewRun
from fm.errors import Conflict, NotFound
from fm.lifecycle import TERMINAL, EventType, Status
from fm.names import new_run_id, new_run_name
from fm.store import audit, registry, sensitive
from fm.store.database import upsert_into
from fm.store.schema import events, logs, metrics, runs
from fm.types import Event, LogChunk, MetricRow, ModelRef, Principal, RunRecord

_LOG_PAGE = 200
"""Chunks of log in one answer."""


def create(
    connection: Connection, new: NewRun, key: str, who: Principal, now: datetime, *, parent: RunRecord | None = None
) -> RunRecord:
    """Stores a run as QUEUED; with a key that has made one before, returns that one.

    Raises:
        NotFound: the run that it goes on from, or the registered model that it trains, has been removed.
        RequestError: it would show samples of a data set that is marked sensitive.
    """
    same = select(runs.c.record).where(runs.c.team == who.team, runs.c.idempotency_key == key)
    if record := connection.execute(same).scalar():
        return RunRecord.model_validate_json(record)
    # What it needs was there when it was looked up; it may have been removed since.
    if parent:
        lock(connection, parent.id)
    model = _keep_models(connection, who.team, new.model)
    sensitive.refuse_to_show(connection, who.team, new)
    run_id = new_run_id()
    pending = RunRecord(
        id=run_id,
        name=new.request.name or new_run_name(new.request.model),
        status=Status.PENDING,
        request=new.request,
        team=who.team,
        owner=who.user,
        launcher=new.launcher,
        priority=new.priority,
        allow_oversize=new.allow_oversize,
        model=model,
        train_data=new.train_data,
        eval_data=new.eval_data,
        caller=new.caller,
        parent=parent.id if parent else None,
        experiment_id=new.experiment_id or run_id,
        created_at=now,
    )
    message = f"goes on from {parent.name}" if parent else "waits for an agent"
    created = Event(type=EventType.CREATED, time=now, message=message, seq=1)
    run = lifecycle.apply(pending, created)
    unless_known = upsert_into(connection, runs).on_conflict_do_nothing(index_elements=["team", "idempotency_key"])
    row = unless_known.values(
        id=run_id,
        name=run.name,
        team=run.team,
        owner=run.owner,
        status=run.status.value,
        experiment_id=run.experiment_id,
        created_at=now.timestamp(),
        idempotency_key=key,
        priority=new.priority,
        record=run.model_dump_json(),
        last_seq=created.seq,
    )
    if not connection.execute(row, execution_options={"preserve_rowcount": True}).rowcount:
        # Another call with this key was quicker. PostgreSQL has waited for its end, so its run is there.
        return RunRecord.model_validate_json(connection.execute(same).scalar_one())
    _insert_event(connection, run_id, created)
    data = sensitive.digests(new.train_data, new.eval_data)
    of = {"goes_on_from": parent.id} if parent else {}
    action = "run.resume" if parent else "run.create"
    audit.record(connection, who, now, action, run_id, name=run.name, model=model.name, data=data, **of)
    return run


def _keep_models(connection: Connection, team: str, model: ModelRef) -> ModelRef:
    """`model` with its owner and key, where it is registered, and likewise the base of an adapter."""
    base = model.adapter_of
    if base and base.kind == "registered":
        model = model.model_copy(update={"adapter_of": registry.keep_readable(connection, team, base)})
    return registry.keep_readable(connection, team, model) if model.kind == "registered" else model


def append(connection: Connection, run_id: str, new: Sequence[Event]) -> RunRecord:
    """Adds `new` to the run's history, numbers it, and lets it change the run.

    A line that a trainer wrote is taken in once, however often it comes, and no more once the run has ended.

    Raises:
        Conflict: the run's status does not allow one of the events; then none is added.
    """
    row = lock(connection, run_id)
    record, seq = RunRecord.model_validate_json(row.record), row.last_seq
    for event in new:
        if event.line is not None and (record.status.is_terminal() or _known(connection, run_id, event)):
            continue
        record = lifecycle.apply(record, event)
        seq += 1
        _insert_event(connection, run_id, event.model_copy(update={"seq": seq}))
    changes: dict[str, Any] = {"record": record.model_dump_json(), "status": record.status.value, "last_seq": seq}
    if record.status is Status.QUEUED or record.status.is_terminal():
        changes |= {"lease_agent": None, "lease_host": None, "lease_expires": None, "work": None}
    connection.execute(update(runs).where(runs.c.id == run_id).values(**changes))
    return record


def _insert_event(connection: Connection, run_id: str, numbered: Event) -> None:
    connection.execute(
        insert(events).values(
            run_id=run_id, seq=numbered.seq, attempt=numbered.attempt, line=numbered.line,
            record=numbered.model_dump_json(),
        )
    )


def _known(connection: Connection, run_id: str, event: Event) -> bool:
    at = (events.c.run_id == run_id, events.c.attempt == event.attempt, events.c.line == event.line)
    return connection.execute(select(events.c.seq).where(*at)).first() is not None


def last_line(connection: Connection, run_id: str, attempt: int) -> int:
    """The highest line number among the events of `attempt`; 0 if it has none."""
    of_it = select(func.max(events.c.line)).where(events.c.run_id == run_id, events.c.attempt == attempt)
    return int(connection.execute(of_it).scalar() or 0)


def lock(connection: Connection, run_id: str) -> Row[Any]:
    """The run's row, which nobody else changes until the transaction ends."""
    row = connection.execute(select(runs).where(runs.c.id == run_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"there is no run {run_id}")
    return row


def find(connection: Connection, team: str, ref: str) -> RunRecord:
    """The run of that id, of the one id that begins so, or the latest of that name.

    Raises:
        NotFound: there is none.
        Conflict: several ids begin so.
    """
    mine = select(runs.c.record).where(runs.c.team == team)
    exact = connection.execute(mine.where(runs.c.id == ref)).scalar()
    named = exact or connection.execute(
        mine.where(runs.c.name == ref).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(1)
    ).scalar()
    if named:
        return RunRecord.model_validate_json(named)
    prefix = ref if ref.startswith("run-") else f"run-{ref}"
    beginning = list(
        connection.execute(mine.where(runs.c.id.startswith(prefix, autoescape=True)).limit(2)).scalars()
    )
    if len(beginning) > 1 and len(prefix) > len("run-"):
        raise Conflict(f"several runs' ids begin with {ref!r}", hint="write more of it; `ftctl runs list` shows them")
    if len(beginning) != 1 or len(prefix) == len("run-"):
        raise NotFound(f"there is no run {ref!r}", hint="`ftctl runs list` shows those that there are")
    return RunRecord.model_validate_json(beginning[0])


def read_events(connection: Connection, run_id: str, after: int, limit: int) -> list[Event]:
    query = select(events.c.record).where(events.c.run_id == run_id, events.c.seq > after).order_by(events.c.seq)
    rows = connection.execute(query.limit(max(0, min(limit, PAGE_LIMIT)))).scalars()
    return sensitive.withhold(connection, run_id, [Event.model_validate_json(record) for record in rows])


def heads(connection: Connection, run_ids: Sequence[str]) -> dict[str, int]:
    """The sequence number of the last event of each run that there is."""
    rows = connection.execute(select(runs.c.id, runs.c.last_seq).where(runs.c.id.in_(run_ids)))
    return {row.id: row.last_seq for row in rows}


def count_by_status(connection: Connection) -> dict[str, int]:
    """How many runs are in each status."""
    query = select(runs.c.status, func.count()).group_by(runs.c.status)
    return {str(status): int(count) for status, count in connection.execute(query)}


def read_metrics(
    connection: Connection, run_id: str, keys: Sequence[str] | None, after_step: int, limit: int
) -> list[MetricRow]:
    at = [metrics.c.run_id == run_id, metrics.c.step > after_step]
    if keys is not None:
        at.append(metrics.c.key.in_(keys))
    steps = select(metrics.c.step).where(*at).distinct().order_by(metrics.c.step)
    page = list(connection.execute(steps.limit(max(0, min(limit, PAGE_LIMIT)))).scalars())
    if not page:
        return []
    rows: dict[int, MetricRow] = {}
    for row in connection.execute(select(metrics).where(*at, metrics.c.step <= page[-1]).order_by(metrics.c.step)):
        time = datetime.fromtimestamp(row.time).astimezone()
        rows.setdefault(row.step, MetricRow(step=row.step, time=time, values={})).values[row.key] = row.value
    return list(rows.values())


def read_log(connection: Connection, run_id: str, offset: int) -> LogChunk:
    query = select(logs.c.seq, logs.c.text).where(logs.c.run_id == run_id, logs.c.seq > offset)
    rows = list(connection.execute(query.order_by(logs.c.seq).limit(_LOG_PAGE)))
    return LogChunk(text="".join(row.text for row in rows), next_offset=rows[-1].seq if rows else offset)


def cancel(connection: Connection, who: Principal, ref: str, event: Event) -> RunRecord:
    """Stops a run that waits; asks the agent to stop one that is active. Asking twice changes nothing.

    Raises:
        Conflict: the run has ended.
    """
    record = find(connection, who.team, ref)
    record = RunRecord.model_validate_json(lock(connection, record.id).record)
    if record.status.is_terminal():
        raise Conflict(f"run {record.name} is {record.status.value}: there is nothing to cancel")
    if record.status is Status.TERMINATING:
        return record
    waits = record.status in (Status.PENDING, Status.QUEUED)
    kind = EventType.CANCELED if waits else EventType.CANCEL_REQUESTED
    record = append(connection, record.id, [event.model_copy(update={"type": kind})])
    audit.record(connection, who, event.time, "run.cancel", record.id, name=record.name)
    return record


def remove(connection: Connection, who: Principal, ref: str, now: datetime) -> RunRecord:
    """Removes an ended run with its history.

    Raises:
        Conflict: it has not ended, or a run that has not ended goes on from it.
    """
    record = find(connection, who.team, ref)
    record = RunRecord.model_validate_json(lock(connection, record.id).record)
    if not record.status.is_terminal():
        raise Conflict(f"run {record.name} is {record.status.value}", hint=f"ftctl runs cancel {record.name}")
    for child in unfinished(connection):
        if child.parent == record.id:
            raise Conflict(f"run {child.name} goes on from {record.name}'s checkpoints", hint="wait until it has ended")
    for table in (events, metrics, logs):
        connection.execute(delete(table).where(table.c.run_id == record.id))
    connection.execute(delete(runs).where(runs.c.id == record.id))
    audit.record(connection, who, now, "run.delete", record.id, name=record.name)
    return record


_NOT_ENDED = runs.c.status.in_([status.value for status in Status if status not in TERMINAL])


def has_unfinished(connection: Connection) -> bool:
    """Whether any team has a run that has not ended."""
    return connection.execute(select(runs.c.id).where(_NOT_ENDED).limit(1)).first() is not None


def unfinished(connection: Connection) -> list[RunRecord]:
    """Runs of all teams that have not ended, oldest first."""
    query = select(runs.c.record).where(_NOT_ENDED).order_by(runs.c.created_at)
    return [RunRecord.model_validate_json(record) for record in connection.execute(query).scalars()]
