"""Whose turn it is: fair between teams, by priority and age within one, and inside the limits of each.

The team with the fewest runs going is next, and of several the one that was served longest ago: a team that has queued
a hundred runs keeps nobody waiting but itself. Priorities therefore order the runs of one team, not teams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from fm.errors import DiskFull
from fm.lifecycle import ACTIVE, Status
from fm.store.database import take_turns, upsert_into
from fm.store.schema import datasets, models, runs, teams, turns
from fm.types import CLUSTER_LAUNCHER, DEFAULT_LAUNCHER, RunRecord

_CANDIDATES = 100
"""Runs of a team that are looked at; those before the one that is taken are too wide for this machine, or locked."""


class Room(NamedTuple):
    """What an agent can take on."""

    free: int
    """Devices of its machine that nobody uses."""
    total: int
    """Devices of its machine."""
    cluster: bool
    """Whether it takes runs that need none of them, since a cluster has the devices."""
    launcher: str
    """What starts the runs that leave it to the agent."""

    def launcher_of(self, run: RunRecord) -> str:
        return self.launcher if run.launcher == DEFAULT_LAUNCHER else run.launcher


class Turn(NamedTuple):
    """What an agent finds when it asks for a run. Their rows are locked."""

    run: RunRecord | None
    """To be started now."""
    too_wide: list[RunRecord]
    """Those to which nothing has happened yet, and that are passed over: they need more than all devices of the agent's
    machine."""


def next_run(connection: Connection, now: datetime, room: Room) -> Turn:
    """The run to start in `room`, if there is one.

    One that needs more than all devices is left for a larger machine; one that only has to wait for them is overtaken
    by none that would take them, or a wide run would never start.
    """
    # Two agents that looked at once would both find a team one below its limit.
    take_turns(connection, "claim")
    waits, too_wide = False, list[RunRecord]()
    for team in _in_turn(connection, now):
        waiting = (
            select(runs.c.record, runs.c.last_seq)
            .where(runs.c.status == Status.QUEUED.value, runs.c.team == team, runs.c.not_before <= now.timestamp())
            .order_by(runs.c.priority.desc(), runs.c.created_at, runs.c.id)
            .limit(_CANDIDATES)
            .with_for_update(skip_locked=True)
        )
        for record, last_seq in connection.execute(waiting):
            run = RunRecord.model_validate_json(record)
            if room.launcher_of(run) == CLUSTER_LAUNCHER:
                if room.cluster:
                    return Turn(run, too_wide)
            elif run.request.num_processes > room.total:
                if last_seq == 1:
                    too_wide.append(run)
            elif not waits:
                if run.request.num_processes <= room.free:
                    return Turn(run, too_wide)
                waits = True
    return Turn(None, too_wide)


def note_turn(connection: Connection, team: str, now: datetime) -> None:
    """Remembers that a run of `team` was started."""
    upsert = upsert_into(connection, turns).values(team=team, claimed_at=now.timestamp())
    connection.execute(upsert.on_conflict_do_update(index_elements=["team"], set_={"claimed_at": now.timestamp()}))


def explain(connection: Connection, team: str, found: Sequence[RunRecord]) -> list[RunRecord]:
    """`found`, all of `team`; those that wait because the team has reached a limit say so in their `reason`."""
    if not any(run.status is Status.QUEUED for run in found) or not (reason := _held_back(connection, team)):
        return list(found)
    return [run.model_copy(update={"reason": reason}) if run.status is Status.QUEUED else run for run in found]


def disk_bytes(connection: Connection, team: str) -> int:
    """What the team's runs, models and data sets take up."""
    columns = (runs.c.disk_bytes, models.c.bytes, datasets.c.bytes)
    sums = (select(func.coalesce(func.sum(column), 0)).where(column.table.c.team == team) for column in columns)
    return sum(int(connection.execute(query).scalar_one()) for query in sums)


def _in_turn(connection: Connection, now: datetime) -> list[str]:
    """The teams that have runs to start and are inside their limits, the one whose turn it is first."""
    last = {row.team: row.claimed_at for row in connection.execute(select(turns))}
    order = [
        (_going(connection, team), last.get(team, 0.0), oldest, team)
        for team in _waiting_teams(connection)
        if (oldest := _oldest(connection, team, now)) is not None and not _held_back(connection, team)
    ]
    return [team for *_, team in sorted(order)]


def _waiting_teams(connection: Connection) -> Iterator[str]:
    """One look into the index for each team, however many runs wait."""
    team: str | None = ""
    of_next = select(func.min(runs.c.team)).where(runs.c.status == Status.QUEUED.value)
    while (team := connection.execute(of_next.where(runs.c.team > team)).scalar()) is not None:
        yield team


def _oldest(connection: Connection, team: str, now: datetime) -> float | None:
    due = (runs.c.status == Status.QUEUED.value, runs.c.team == team, runs.c.not_before <= now.timestamp())
    first = select(runs.c.created_at).where(*due).order_by(runs.c.priority.desc(), runs.c.created_at).limit(1)
    return connection.execute(first).scalar()


def _going(connection: Connection, team: str) -> int:
    active = [status.value for status in ACTIVE]
    count = select(func.count()).select_from(runs).where(runs.c.status.in_(active), runs.c.team == team)
    return int(connection.execute(count).scalar_one())


def _held_back(connection: Connection, team: str) -> str:
    """Which limit the team has reached, in a sentence; empty if none."""
    limits = connection.execute(select(teams.c.max_running, teams.c.max_disk).where(teams.c.name == team)).first()
    if limits is None:
        return ""
    if limits.max_running is not None and (going := _going(connection, team)) >= limits.max_running:
        return f"waits: {going} runs of team {team} are going, and no more than {limits.max_running} may at once"
    if limits.max_disk is not None and (used := disk_bytes(connection, team)) >= limits.max_disk:
        return f"waits: team {team} uses {_of(used, limits.max_disk)}; removing runs, models or data sets frees some"
    return ""


def require_room(connection: Connection, team: str, more: int) -> None:
    """Returns if `more` bytes fit the team's quota of disk.

    Raises:
        DiskFull: they don't.
    """
    most = connection.execute(select(teams.c.max_disk).where(teams.c.name == team)).scalar()
    if most is not None and (used := disk_bytes(connection, team)) + more > most:
        raise DiskFull(
            f"team {team} uses {_of(used, most)}, and {more / 1e9:.3g} GB more don't fit",
            hint="remove runs, models or data sets, or ask who runs the server for more",
        )


def _of(used: int, most: int) -> str:
    return f"{used / 1e9:.3g} of its {most / 1e9:.3g} GB of disk"
