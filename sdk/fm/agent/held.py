"""A run as an agent holds it under a lease: its record, what a successor must know, and every way to write either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from typing import Any, Self

from fm.agent.ingest import Cursor, News, read_news
from fm.agent.signs import seconds_lived
from fm.errors import Conflict
from fm.files import size_of
from fm.job import Stage
from fm.launching import Handle
from fm.layout import StageFolder, Storage
from fm.lifecycle import EventType, Status
from fm.store.leases import LEASE, Lease
from fm.store.store import RunStore
from fm.types import Event, ModelVersion, RunRecord


@dataclass(frozen=True, slots=True)
class Work:
    """What a successor must know of the stage at which a run is. It is in the store before the step that needs it."""

    stage: Stage | None = None
    """None before the first."""
    attempt: int = 0
    devices: tuple[int, ...] = ()
    handle: Handle | None = None
    """None until its process has been started."""
    cursor: Cursor = field(default_factory=Cursor)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the stage has told of the model."""
    finished: bool = False
    """Whether its training is done."""

    @classmethod
    def read(cls, noted: dict[str, Any]) -> Self:
        """From the store, where it is JSON; empty where nothing has been noted."""
        names = {entry.name for entry in fields(cls)}  # another version of the agent may have noted more
        known = {name: value for name, value in noted.items() if name in names}
        known |= {"devices": tuple(noted.get("devices", ())), "cursor": Cursor(**noted.get("cursor", {}))}
        return cls(**known)


class HeldRun:
    """One run under an agent's lease.

    Everything that writes raises `LeaseLost` once another agent owns the run.
    """

    def __init__(self, store: RunStore, storage: Storage, run: RunRecord, lease: Lease) -> None:
        self._store = store
        self.lease = lease
        self.record = run
        self.folder = storage.run(run.id)
        self.work = Work.read(store.work(lease))
        self._renewed = store.clock.now()

    @property
    def stage_folder(self) -> StageFolder:
        return self.folder.check if self.work.stage == "check" else self.folder.attempt(self.work.attempt)

    def renew(self) -> None:
        """Prolongs the lease, where it has run for a while."""
        now = self._store.clock.now()
        if now - self._renewed > LEASE / 6:
            self.record, self._renewed = self._store.renew(self.lease), now

    def status_now(self) -> Status:
        """As the store has it: somebody may have asked for the run's end."""
        self.record = self._store.find(self.record.team, self.record.id)
        return self.record.status

    def progress(self) -> str:
        """In words, from where another attempt would go on."""
        saved = self.record.checkpoint_step
        return "it had no checkpoint yet" if saved is None else f"its last checkpoint is of step {saved}"

    def note(self, work: Work, *, events: Sequence[Event] = ()) -> None:
        """Writes what is done next, or has just been done. It holds here also where the store can't take it now: a
        process that was started is followed."""
        self.work = work
        self.record = self._store.save(self.lease, work=asdict(work), new_events=events)

    def take_in(self) -> bool:
        """Writes what the stage has told since the last look. Returns whether there was anything."""
        work = self.work
        news = read_news(self.stage_folder, work.attempt, work.cursor)
        if news.cursor == work.cursor:
            return False
        facts, finished = dict(work.facts), work.finished
        for event in news.events:
            if event.type in (EventType.MODEL_INITIALIZED, EventType.TRAIN_FINISHED):
                facts |= event.data
            finished = finished or event.type is EventType.TRAIN_FINISHED
        work = replace(work, cursor=news.cursor, facts=facts, finished=finished)
        self.record = self._store.save(self.lease, work=asdict(work), **self._contents(news, finished=finished))
        # Only now: what the store could not take is read again.
        self.work = work
        return True

    def _contents(self, news: News, *, finished: bool) -> dict[str, Any]:
        what: dict[str, Any] = {"new_events": news.events, "new_metrics": news.metrics, "log": news.log}
        if finished or any(event.type is EventType.CHECKPOINT_SAVED for event in news.events):
            what["disk_bytes"] = size_of(self.folder.path)
        return what

    def requeue(self, reason: str, *, wait: timedelta | None = None, **data: Any) -> None:
        """Gives the run back to the queue, where it stays for `wait` at least."""
        now = self._store.clock.now()
        since = self.record.attempt_started_at if self.work.stage == "train" else None
        data["ran_seconds"] = seconds_lived(self.stage_folder, since) if since else 0.0
        event = Event(type=EventType.REQUEUED, time=now, message=reason, data=data)
        try:
            self.record = self._store.save(self.lease, new_events=[event], not_before=now + wait if wait else None)
        except Conflict:
            # Somebody has asked for its end: it does not go back to the queue.
            self.end(EventType.CANCELED, "cancelled; " + self.progress())

    def end(self, type: EventType, message: str, **data: Any) -> None:
        """Ends the run without a model."""
        event = Event(type=type, time=self._store.clock.now(), message=message, data=data)
        self.record = self._store.save(self.lease, new_events=[event])

    def complete(self, event: Event, version: ModelVersion | None) -> None:
        """Ends the run, and registers `version` if there is one."""
        self.record = self._store.complete(self.lease, event, version, disk_bytes=size_of(self.folder.path))
