"""Leases: which agent may write on behalf of a run. An agent's every write goes through one; a stale one is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, insert, or_, select, update

from fm.errors import LeaseLost
from fm.lifecycle import ACTIVE, EventType
from fm.store import queue
from fm.store import runs as run_store
from fm.store.database import upsert_into
from fm.store.schema import logs, metrics, runs
from fm.types import Event, MetricRow, RunRecord

LEASE = timedelta(seconds=30)
"""How long a lease holds without being renewed."""
LOG_CAP = 8 << 20
"""Bytes of log that the store keeps of one run; the rest stays in the run's folder."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write on behalf of `run_id`. `epoch` counts owners; only the newest one's writes are taken."""

    run_id: str
    agent: str
    epoch: int


def claim(
    connection: Connection, agent: str, host: str, now: datetime, room: queue.Room
) -> tuple[RunRecord, Lease] | None:
    """Takes the run whose turn it is, if it fits into `room`: see `fm.store.queue`. Those that are too wide for it are
    told so, once: they may wait for ever."""
    first, too_wide = queue.next_run(connection, now, room)
    for run in too_wide:
        needs = f"needs {run.request.num_processes} devices, one for each process"
        message = f"{needs}; {host} has {room.total}, and leaves it to a larger machine"
        run_store.append(connection, run.id, [Event(type=EventType.WARNING, time=now, message=message)])
    if first is None:
        return None
    run_id = first.id
    data = {"actor": agent, "launcher": room.launcher_of(first)}
    event = Event(type=EventType.CLAIMED, time=now, message=f"taken by {agent}", data=data)
    record = run_store.append(connection, run_id, [event])
    queue.note_turn(connection, first.team, now)
    return record, _take(connection, run_id, agent, host, now)


def adopt(connection: Connection, agent: str, host: str, now: datetime) -> list[tuple[RunRecord, Lease]]:
    """Takes over the active runs that no living agent owns: their lease ran out, or an earlier agent of this machine
    holds it (there is only one at a time on a machine)."""
    left = or_(
        runs.c.lease_expires.is_(None),
        runs.c.lease_expires < now.timestamp(),
        and_(runs.c.lease_host == host, runs.c.lease_agent != agent),
    )
    active = [status.value for status in ACTIVE]
    query = select(runs.c.id).where(runs.c.status.in_(active), left).with_for_update(skip_locked=True)
    taken = []
    for run_id in list(connection.execute(query).scalars()):
        lease = _take(connection, run_id, agent, host, now)
        taken.append((RunRecord.model_validate_json(run_store.lock(connection, run_id).record), lease))
    return taken


def _take(connection: Connection, run_id: str, agent: str, host: str, now: datetime) -> Lease:
    connection.execute(
        update(runs)
        .where(runs.c.id == run_id)
        .values(
            lease_agent=agent,
            lease_host=host,
            lease_epoch=runs.c.lease_epoch + 1,
            lease_expires=(now + LEASE).timestamp(),
        )
    )
    epoch = connection.execute(select(runs.c.lease_epoch).where(runs.c.id == run_id)).scalar_one()
    return Lease(run_id, agent, int(epoch))


def fence(connection: Connection, lease: Lease) -> Any:
    """The run's row, locked, if `lease` is still the newest on it.

    Raises:
        LeaseLost: it is not.
    """
    row = run_store.lock(connection, lease.run_id)
    if row.lease_agent != lease.agent or row.lease_epoch != lease.epoch:
        raise LeaseLost(f"run {lease.run_id} is owned by {row.lease_agent or 'nobody'} now")
    return row


def renew(connection: Connection, lease: Lease, now: datetime) -> RunRecord:
    """Prolongs the lease, and returns the run as it is now."""
    row = fence(connection, lease)
    expires = (now + LEASE).timestamp()
    connection.execute(update(runs).where(runs.c.id == lease.run_id).values(lease_expires=expires))
    return RunRecord.model_validate_json(row.record)


def let_go(connection: Connection, agent: str) -> None:
    """Ends all leases of `agent`; its runs stay as they are, for another to adopt."""
    connection.execute(update(runs).where(runs.c.lease_agent == agent).values(lease_agent=None, lease_expires=None))


def read_work(connection: Connection, lease: Lease) -> dict[str, Any]:
    """What the run's agent has noted for its successor; empty if nothing."""
    row = fence(connection, lease)
    return dict(json.loads(row.work)) if row.work else {}


def save(
    connection: Connection,
    lease: Lease,
    *,
    work: dict[str, Any] | None = None,
    new_events: Sequence[Event] = (),
    new_metrics: Sequence[MetricRow] = (),
    log: str = "",
    not_before: datetime | None = None,
    disk_bytes: int | None = None,
) -> RunRecord:
    """Writes what an agent has read of a trainer, together with how far it has read (`work`): all of it or nothing, so
    that nothing is taken in twice or passed over. Events come last, since one of them may end the lease."""
    row = fence(connection, lease)
    if log:
        _add_log(connection, lease.run_id, row.log_bytes, log)
    if new_metrics:
        _add_metrics(connection, lease.run_id, new_metrics)
    changes: dict[str, Any] = {}
    if work is not None:
        changes["work"] = json.dumps(work)
    if not_before:
        changes["not_before"] = not_before.timestamp()
    if disk_bytes is not None:
        changes["disk_bytes"] = disk_bytes
    if changes:
        connection.execute(update(runs).where(runs.c.id == lease.run_id).values(**changes))
    if new_events:
        return run_store.append(connection, lease.run_id, new_events)
    return RunRecord.model_validate_json(row.record)


def _add_metrics(connection: Connection, run_id: str, rows: Sequence[MetricRow]) -> None:
    # A later attempt repeats the steps after its checkpoint: its figures replace the earlier ones. One statement may
    # not touch a key twice on PostgreSQL, hence the dict.
    values = {
        (key, row.step): {"run_id": run_id, "key": key, "step": row.step, "value": value, "time": row.time.timestamp()}
        for row in rows
        for key, value in row.values.items()
    }
    upsert = upsert_into(connection, metrics)
    replace = {"value": upsert.excluded.value, "time": upsert.excluded.time}
    statement = upsert.on_conflict_do_update(index_elements=["run_id", "key", "step"], set_=replace)
    connection.execute(statement, list(values.values()))


def _add_log(connection: Connection, run_id: str, before: int, text: str) -> None:
    if before >= LOG_CAP:
        return
    size = len(text.encode())
    if before + size >= LOG_CAP:
        text = text[: LOG_CAP - before] + f"\n[log cut at {LOG_CAP >> 20} MiB; the end is in the run's folder]\n"
    last = connection.execute(select(logs.c.seq).where(logs.c.run_id == run_id).order_by(logs.c.seq.desc()).limit(1))
    # PostgreSQL refuses NUL in text.
    clean = text.replace("\0", "\ufffd")
    connection.execute(insert(logs).values(run_id=run_id, seq=(last.scalar() or 0) + 1, text=clean))
    connection.execute(update(runs).where(runs.c.id == run_id).values(log_bytes=before + size))
