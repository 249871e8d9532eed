"""The store as one object: a transaction for each question or order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from fm.backends.base import NewRun, RunFilter
from fm.clock import Clock, SystemClock
from fm.errors import Conflict, Forbidden
from fm.store import access, audit, datasets, leases, listing, queue, registry
from fm.store import runs as run_store
from fm.store.access import Access
from fm.store.admin import Administration
from fm.store.database import Database
from fm.store.leases import Lease
from fm.store.schema import agents, models
from fm.store.schema import runs as run_table
from fm.types import DEFAULT_LAUNCHER, Dataset, Event, LogChunk, MetricRow, ModelVersion, Principal, RunRecord

AGENT_SILENCE = timedelta(seconds=30)
"""An agent that has not been heard of for so long counts as gone."""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent as it announced itself."""

    id: str
    host: str
    pid: int
    version: str
    heartbeat: float
    drain: bool


class RunStore:
    """Runs, events, metrics, logs, models and agents. Safe to use from several threads and processes."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self.database = Database(url)
        self.clock = clock or SystemClock()
        self.url = url
        self.access = Access(self.database, self.clock)

    def administration(self, who: Principal) -> Administration:
        """The orders of `who` about teams, users, tokens and grants; whether it may give any is the caller's matter."""
        return Administration(self.database, self.clock, who)

    def close(self) -> None:
        self.database.close()

    # Runs, on behalf of a team

    def create(self, new: NewRun, key: str, who: Principal, *, parent: RunRecord | None = None) -> RunRecord:
        with self.database.write() as connection:
            for data in (new.train_data, new.eval_data):
                if data and data.stored:
                    access.find_dataset(connection, who.team, data.digest)
            return run_store.create(connection, new, key, who, self.clock.now(), parent=parent)

    def find(self, team: str, ref: str) -> RunRecord:
        with self.database.read() as connection:
            [record] = queue.explain(connection, team, [run_store.find(connection, team, ref)])
            return record

    def list(self, team: str, wanted: RunFilter) -> Sequence[RunRecord]:
        with self.database.read() as connection:
            return queue.explain(connection, team, listing.list_runs(connection, team, wanted))

    def events(self, run_id: str, after: int, limit: int) -> Sequence[Event]:
        with self.database.read() as connection:
            return run_store.read_events(connection, run_id, after, limit)

    def metrics(self, run_id: str, keys: Sequence[str] | None, after_step: int, limit: int) -> Sequence[MetricRow]:
        with self.database.read() as connection:
            return run_store.read_metrics(connection, run_id, keys, after_step, limit)

    def log(self, run_id: str, offset: int) -> LogChunk:
        with self.database.read() as connection:
            return run_store.read_log(connection, run_id, offset)

    def cancel(self, who: Principal, ref: str, event: Event) -> RunRecord:
        with self.database.write() as connection:
            return run_store.cancel(connection, who, ref, event)

    def remove(self, who: Principal, ref: str) -> RunRecord:
        with self.database.write() as connection:
            return run_store.remove(connection, who, ref, self.clock.now())

    def unfinished(self) -> Sequence[RunRecord]:
        """Runs of all teams that have not ended, oldest first."""
        with self.database.read() as connection:
            return run_store.unfinished(connection)

    def heads(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The sequence number of the last event of each of these runs; of a removed one, none."""
        with self.database.read() as connection:
            return run_store.heads(connection, run_ids)

    def count_by_status(self) -> dict[str, int]:
        """How many runs of all teams are in each status."""
        with self.database.read() as connection:
            return run_store.count_by_status(connection)

    def has_unfinished(self) -> bool:
        """Whether any team has a run that has not ended."""
        with self.database.read() as connection:
            return run_store.has_unfinished(connection)

    # Runs, on behalf of an agent

    def claim(
        self, agent: str, host: str, *, free: int, total: int, cluster: bool = False, launcher: str = DEFAULT_LAUNCHER
    ) -> tuple[RunRecord, Lease] | None:
        room = queue.Room(free, total, cluster, launcher)
        with self.database.write() as connection:
            return leases.claim(connection, agent, host, self.clock.now(), room)

    def adopt(self, agent: str, host: str) -> Sequence[tuple[RunRecord, Lease]]:
        with self.database.write() as connection:
            return leases.adopt(connection, agent, host, self.clock.now())

    def renew(self, lease: Lease) -> RunRecord:
        with self.database.write() as connection:
            return leases.renew(connection, lease, self.clock.now())

    def work(self, lease: Lease) -> dict[str, Any]:
        with self.database.read() as connection:
            return leases.read_work(connection, lease)

    def last_line(self, run_id: str, attempt: int) -> int:
        """The highest line number among the events that were taken in of that attempt; 0 if none was."""
        with self.database.read() as connection:
            return run_store.last_line(connection, run_id, attempt)

    def save(self, lease: Lease, **what: Any) -> RunRecord:
        """See `fm.store.leases.save`."""
        with self.database.write() as connection:
            return leases.save(connection, lease, **what)

    def complete(
        self, lease: Lease, event: Event, version: ModelVersion | None, *, disk_bytes: int | None = None
    ) -> RunRecord:
        """Registers `version` and ends the run, in one transaction. `disk_bytes` is what its folder still holds."""
        with self.database.write() as connection:
            leases.save(connection, lease, disk_bytes=disk_bytes)
            if version:
                stored = registry.insert_version(connection, version)
                named = {"message": f"registered {stored.ref}", "data": event.data | {"registered_model": stored.ref}}
                event = event.model_copy(update=named)
            return run_store.append(connection, lease.run_id, [event])

    # Models

    def model(self, team: str, ref: str) -> ModelVersion:
        with self.database.read() as connection:
            return registry.get(connection, team, ref)

    def models(self, team: str, name: str | None, limit: int) -> Sequence[ModelVersion]:
        with self.database.read() as connection:
            return registry.list_versions(connection, team, name, limit)

    def alias(self, who: Principal, ref: str, alias: str, *, remove: bool) -> ModelVersion:
        with self.database.write() as connection:
            version = registry.set_alias(connection, who.team, ref, alias, remove=remove)
            action = "model.unalias" if remove else "model.alias"
            audit.record(connection, who, self.clock.now(), action, version.ref, alias=alias)
            return version

    def remove_model(self, who: Principal, ref: str) -> ModelVersion:
        with self.database.write() as connection:
            version = registry.keep_still(connection, who.team, ref)
            for run in run_store.unfinished(connection):
                needed = [(need.team or run.team, need.name) for need in (run.model, run.model.adapter_of) if need]
                if (version.team, version.ref) in needed:
                    which = f"run {run.name}" if run.team == who.team else "a run of another team"
                    raise Conflict(f"{version.ref} can't be removed: {which} needs it", hint="wait for its end")
            registry.remove(connection, who.team, ref)
            audit.record(connection, who, self.clock.now(), "model.delete", version.ref)
            return version

    def note(self, who: Principal, action: str, object: str, **detail: Any) -> None:
        """Adds to the audit log what changes nothing in the store, such as a download."""
        with self.database.write() as connection:
            audit.record(connection, who, self.clock.now(), action, object, **detail)

    # Data sets

    def add_dataset(self, who: Principal, new: Dataset) -> Dataset:
        with self.database.write() as connection:
            detail = {"name": new.name, "bytes": new.bytes, **({"sensitive": True} if new.sensitive else {})}
            audit.record(connection, who, self.clock.now(), "data.add", new.digest, **detail)
            return datasets.add(connection, new)

    def dataset(self, team: str, digest: str) -> Dataset:
        with self.database.read() as connection:
            return datasets.of_row(access.find_dataset(connection, team, digest))

    def require_room(self, team: str, more: int) -> None:
        """Returns if `more` bytes fit the team's quota of disk.

        Raises:
            DiskFull: they don't.
        """
        with self.database.read() as connection:
            queue.require_room(connection, team, more)

    def require_download(self, who: Principal, digest: str) -> None:
        """Notes that a data set is handed out, or that it was asked for and is not; see
        `fm.store.access.require_download`."""
        try:
            with self.database.write() as connection:
                access.require_download(connection, who.team, digest)
                audit.record(connection, who, self.clock.now(), "data.read", digest)
        except Forbidden:
            self.access.note_refusal(who, digest, "data.read of sensitive data")
            raise

    def datasets(self, team: str, limit: int) -> Sequence[Dataset]:
        with self.database.read() as connection:
            return datasets.list_datasets(connection, team, limit)

    def remove_dataset(self, who: Principal, digest: str) -> None:
        with self.database.write() as connection:
            datasets.remove(connection, who.team, digest)
            audit.record(connection, who, self.clock.now(), "data.delete", digest)

    def known_digests(self) -> frozenset[str]:
        """The digests of all teams' data sets."""
        with self.database.read() as connection:
            return datasets.digests(connection)

    def in_use(self) -> tuple[frozenset[str], frozenset[str]]:
        """The ids of all runs, and of all runs that registered a model; of every team."""
        with self.database.read() as connection:
            known = frozenset(connection.execute(select(run_table.c.id)).scalars())
            registered = connection.execute(select(models.c.run_id).where(models.c.run_id.is_not(None))).scalars()
            return known, frozenset(map(str, registered))

    # Agents

    def announce(self, agent: str, host: str, pid: int, version: str) -> bool:
        """Notes that the agent is alive; forgets those that are not. Returns whether it has been asked to drain."""
        now = self.clock.now()
        with self.database.write() as connection:
            connection.execute(delete(agents).where(agents.c.heartbeat < (now - AGENT_SILENCE).timestamp()))
            known = connection.execute(
                update(agents).where(agents.c.id == agent).values(heartbeat=now.timestamp())
            ).rowcount
            if not known:
                connection.execute(
                    insert(agents).values(id=agent, host=host, pid=pid, version=version, heartbeat=now.timestamp())
                )
            return bool(connection.execute(select(agents.c.drain).where(agents.c.id == agent)).scalar())

    def retire(self, agent: str) -> None:
        """Forgets the agent, and lets go of its leases so that the next one need not wait for them."""
        with self.database.write() as connection:
            connection.execute(delete(agents).where(agents.c.id == agent))
            leases.let_go(connection, agent)

    def agents(self) -> Sequence[AgentRecord]:
        """The agents that have been heard of lately."""
        since = (self.clock.now() - AGENT_SILENCE).timestamp()
        with self.database.read() as connection:
            rows = connection.execute(select(agents).where(agents.c.heartbeat >= since)).mappings()
            return [AgentRecord(**(dict(row) | {"drain": bool(row["drain"])})) for row in rows]

    def drain(self, agent: str) -> None:
        """Asks the agent to end, leaving its trainers to the next one."""
        with self.database.write() as connection:
            connection.execute(update(agents).where(agents.c.id == agent).values(drain=1))
