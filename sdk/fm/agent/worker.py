"""One run in an agent's hands, from its claim to its end, as steps that may be interrupted anywhere.

Whatever a successor must know is in the store (`work`) before the step that needs it, so a worker can be made anew from
the store at any point: that is how a run of a dead agent is adopted.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from fm.agent import processes
from fm.agent.freight import Freight
from fm.agent.grace import Grace
from fm.agent.ingest import Cursor, News, cap_log, read_news
from fm.agent.inputs import Inputs
from fm.agent.jobs import make_job
from fm.agent.signs import Silence, WatchedTime, began, seconds_lived
from fm.errors import Conflict, DiskFull, StoreError, Unavailable
from fm.files import size_of
from fm.filestore import FileStore
from fm.job import EXIT_DISK_FULL, EXIT_STOPPED, Stage
from fm.launching import Launcher, Life, way_of_dying
from fm.layout import StageFolder, Storage
from fm.lifecycle import EventType, Fault, Status
from fm.machine import kills_for_memory
from fm.request import what_takes_less
from fm.store.leases import LEASE, Lease
from fm.store.store import RunStore
from fm.types import CLUSTER_LAUNCHER, Event, RunRecord

FRUITLESS_LIMIT = 3
"""Attempts in a row without a newer whole checkpoint, after which a run is given up."""
RETRY = timedelta(seconds=60)
"""How long a run waits in the queue for space on the disk, or for a file store or cluster that can't be reached."""


class Worker:
    """Sees one run through. `advance` does what can be done now, and never waits."""

    def __init__(
        self, store: RunStore, storage: Storage, files: FileStore, launcher: Launcher, run: RunRecord, lease: Lease,
        devices: tuple[int, ...] | None = None,
    ) -> None:
        """`devices` are those reserved for a run just claimed; None for one that is adopted."""
        self._store, self._storage = store, storage
        self._freight = Freight(store, files, storage)
        self._launcher = launcher
        self.lease = lease
        self._run = run
        self._folder = storage.run(run.id)
        self._work: dict[str, Any] = store.work(lease)
        self._renewed = store.clock.now()
        self._watched, self._silence = WatchedTime(), Silence()
        self._grace = Grace(launcher, store.clock)
        self._stalled, self._kills = "", kills_for_memory()
        self._adopted = devices is None
        is_elsewhere = devices is None and not processes.is_here(self._work.get("handle") or {})
        self.is_here = not is_elsewhere and run.launcher != CLUSTER_LAUNCHER
        # Where the process of an adopted run is on another machine, so are its devices.
        kept = () if is_elsewhere else self._work.get("devices", ())
        self.devices = tuple(kept) if devices is None else devices

    @property
    def run(self) -> RunRecord:
        return self._run

    def advance(self) -> bool:
        """Does what can be done now. Returns whether the run is still this agent's.

        Raises:
            LeaseLost: another agent owns it.
        """
        try:
            if not self._run.status.is_terminal():
                self._advance()
        except Unavailable as error:
            if self._work.get("handle") or isinstance(error, StoreError):
                raise  # the process goes on, or has done its work: what could not be written is written later
            self._requeue("the disk is full: " * isinstance(error, DiskFull) + error.message, wait=RETRY)
        return self._lingers() if self._run.status.is_terminal() else self._run.status is not Status.QUEUED

    def kill(self) -> None:
        """Ends the process, if there is one, whatever it is doing."""
        if handle := self._work.get("handle"):
            self._launcher.signal(handle, "kill")

    def lives_here(self) -> bool:
        """Whether its process still runs, and on this machine."""
        handle = self._work.get("handle")
        return self.is_here and handle is not None and self._launcher.poll(handle).life is not Life.EXITED

    def _lingers(self) -> bool:
        """Whether the ended run's process still holds its devices, or what it saved last is still being put out."""
        handle = self._work.get("handle")
        return handle is not None and (self._grace.outlives(handle) or not self._is_put_out())

    def _advance(self) -> None:
        now = self._store.clock.now()
        if now - self._renewed > LEASE / 6:
            self._run, self._renewed = self._store.renew(self.lease), now
        if "stage" not in self._work and self._adopted:
            # Only a claim reserves devices.
            self._requeue("its agent died before starting it")
        elif "stage" not in self._work:
            self._begin()
        elif self._work["handle"] is None:
            # An agent died between the decision to start and the note of having started.
            processes.end_leftover(self._stage_folder())
            self._requeue("its agent died while starting it")
        else:
            self._follow()

    # Starting a stage

    def _begin(self) -> None:
        if self._current_status() is Status.TERMINATING:
            self._end(EventType.CANCELED, "cancelled before it started")
        elif (inputs := self._inputs()) is None:
            return
        elif prepared := self._prepared():
            self._begin_training(prepared, inputs)
        else:
            shutil.rmtree(self._folder.check.path, ignore_errors=True)
            # The lines of an earlier check are known by their numbers: those of this one are counted on.
            self._start("check", 0, inputs, None, lines=self._store.last_line(self._run.id, 0))

    def _inputs(self) -> Inputs | None:
        try:
            return self._freight.inputs(self._run)
        except Unavailable as error:
            self._requeue(error.message, wait=RETRY)
            return None

    def _begin_training(self, prepared: dict[str, Any], inputs: Inputs) -> None:
        self._silence = Silence()
        self._start("train", self._run.attempt + 1, inputs, prepared)

    def _start(
        self, stage: Stage, attempt: int, inputs: Inputs, prepared: dict[str, Any] | None, *, lines: int = 0
    ) -> None:
        now = self._store.clock.now()
        facts = {"base_digest": prepared["base_digest"]} if prepared and "base_digest" in prepared else {}
        self._work = {"stage": stage, "attempt": attempt, "handle": None, "devices": self.devices}
        self._work |= {"cursor": asdict(Cursor(lines=lines)), "facts": facts}
        started = [Event(type=EventType.STARTED, time=now, message=f"attempt {attempt}", data={"attempt": attempt})]
        job = make_job(
            self._storage, self._run, inputs, stage, attempt, prepared=prepared, now=now, devices=self.devices
        )
        self._save(events=started if stage == "train" else [])
        folder = self._stage_folder()
        job.write(folder)
        # Only now: an older attempt's process either sees the folder just made and ends, or is seen here.
        for _, older in self._folder.attempts():
            if older != folder:
                processes.end_leftover(older)
        self._work["handle"] = self._launcher.start(self._freight.as_started_here(self._run), folder, stage)
        self._save()

    def _prepared(self) -> dict[str, Any] | None:
        """What an earlier check of this run found, if one has passed and what it made is still there."""
        passed = [e for e in read_news(self._folder.check, 0, Cursor()).events if e.type is EventType.CHECK_PASSED]
        return passed[-1].data if passed else None

    # Following a stage

    def _follow(self) -> None:
        if self._freight.is_lost(self._stage_folder()):
            self._requeue(f"its machine was lost; {self._progress()}")
            return
        # Asked first and read second: what a process wrote before it exited is then always seen.
        poll = self._launcher.poll(self._work["handle"])
        if poll.life is Life.ALIVE:
            self._kills = kills_for_memory()
        self._take_in(self._read())
        cap_log(self._stage_folder(), self._cursor())
        put_out = self._is_put_out()
        if self._run.status.is_terminal():
            return
        now = self._watched.look(self._store.clock.now())
        silent = self._silence.listen(self._stage_folder(), self._cursor(), now)
        lost = poll.life is Life.UNKNOWN and (bool(self._work.get("finished")) or silent > self._silence.gone_after)
        if poll.life is Life.EXITED or lost:
            self._take_in_the_rest()
            if put_out and not self._run.status.is_terminal():
                self._exited(poll.code, lost_after=silent if lost else None)
        elif self._current_status() is Status.TERMINATING:
            self._grace.stop(self._work["handle"], now, self._silence.save_takes)
        elif self._work["stage"] == "train" and poll.life is Life.ALIVE and silent > self._silence.stalled_after:
            # Its next poll finds it dead: from there on it is a crash like any other.
            self._stalled = f"it stood still at step {self._run.step} for {silent.total_seconds() / 60:.0f} minutes"
            self.kill()

    def _is_put_out(self) -> bool:
        return self._work.get("stage") != "train" or self._freight.is_put_out(self._stage_folder())

    def _take_in_the_rest(self) -> None:
        while (news := self._read()).cursor != self._cursor():
            self._take_in(news)

    def _read(self) -> News:
        return read_news(self._stage_folder(), self._work["attempt"], self._cursor())

    def _take_in(self, news: News) -> None:
        if news.cursor != self._cursor():
            facts, finished = dict(self._work["facts"]), bool(self._work.get("finished"))
            for event in news.events:
                if event.type in (EventType.MODEL_INITIALIZED, EventType.TRAIN_FINISHED):
                    facts |= event.data
                finished = finished or event.type is EventType.TRAIN_FINISHED
            work = {**self._work, "cursor": asdict(news.cursor), "facts": facts, "finished": finished}
            what: dict[str, Any] = {"new_events": news.events, "new_metrics": news.metrics, "log": news.log}
            if finished or any(event.type is EventType.CHECKPOINT_SAVED for event in news.events):
                what["disk_bytes"] = size_of(self._folder.path)
            self._run = self._store.save(self.lease, work=work, **what)
            # Only now: what the store could not take is read again.
            self._work = work

    def _current_status(self) -> Status:
        self._run = self._store.find(self._run.team, self._run.id)
        return self._run.status

    # Ending

    def _exited(self, code: int | None, *, lost_after: timedelta | None) -> None:
        stopping = self._current_status() is Status.TERMINATING
        if self._work["stage"] == "train" and self._work.get("finished"):
            self._register()
        elif stopping:
            self._end(EventType.CANCELED, "cancelled; " + self._progress(), exit_code=code)
        elif self._work["stage"] == "check" and (prepared := self._prepared()):
            if not (self.is_here or self._run.launcher == CLUSTER_LAUNCHER):
                self._requeue("its data was checked on another machine")
            elif inputs := self._inputs():
                self._begin_training(prepared, inputs)
        elif lost_after is not None:
            minutes = int(lost_after.total_seconds() / 60)
            self._requeue(f"nothing was heard of its process for {minutes} minutes; " + self._progress())
        elif code == EXIT_DISK_FULL:
            self._requeue("the disk is full; it goes on once there is space", wait=RETRY)
        elif code == EXIT_STOPPED:
            self._requeue("its process was stopped from outside; " + self._progress())
        else:
            # A process that was ended for want of memory since this one was last seen alive is most likely this one.
            trained_here = self.is_here and self._work["stage"] == "train" and not self._stalled
            self._crashed(code, starved=trained_here and kills_for_memory() > self._kills)

    def _crashed(self, code: int | None, *, starved: bool = False) -> None:
        reason = f"{self._stalled or way_of_dying(code, starved=starved)}; {self._progress()}"
        if self._run.fruitless + 1 < FRUITLESS_LIMIT:
            self._requeue(reason, counts_as_attempt=True, starved=starved)
            return
        remedy = f"\n  → {what_takes_less(self._run.request, of_gpu=False)}" * starved
        why = f"{FRUITLESS_LIMIT} attempts in a row made no progress; the last: {reason}{remedy}"
        self._end(EventType.FAILED, why, fault=Fault.USER if starved else Fault.INFRASTRUCTURE, exit_code=code)

    def _progress(self) -> str:
        saved = self._run.checkpoint_step
        return "it had no checkpoint yet" if saved is None else f"its last checkpoint is of step {saved}"

    def _register(self) -> None:
        placing = self._freight.place(self._run, self._stage_folder())
        if not placing.is_done:
            return
        if (manifest := placing.result()) is None:
            self._crashed(None)
            return
        version, now = self._freight.version(self._run, manifest, self._work["facts"]), self._store.clock.now()
        ran = (now - began(self._stage_folder(), self._run.attempt_started_at or now)).total_seconds()
        event = Event(type=EventType.COMPLETED, time=now, message="done", data={"ran_seconds": max(0.0, ran)})
        self._run = self._store.complete(self.lease, event, version, disk_bytes=size_of(self._folder.path))

    def _requeue(self, reason: str, *, wait: timedelta | None = None, **data: Any) -> None:
        now = self._store.clock.now()
        since = self._run.attempt_started_at if self._work.get("stage") == "train" else None
        data["ran_seconds"] = seconds_lived(self._stage_folder(), since) if since else 0.0
        event = Event(type=EventType.REQUEUED, time=now, message=reason, data=data)
        try:
            self._run = self._store.save(self.lease, new_events=[event], not_before=now + wait if wait else None)
        except Conflict:
            # Somebody has asked for its end: it does not go back to the queue.
            self._end(EventType.CANCELED, "cancelled; " + self._progress())

    def _end(self, type: EventType, message: str, **data: Any) -> None:
        event = Event(type=type, time=self._store.clock.now(), message=message, data=data)
        self._run = self._store.save(self.lease, new_events=[event])

    # The store

    def _stage_folder(self) -> StageFolder:
        return self._folder.check if self._work["stage"] == "check" else self._folder.attempt(self._work["attempt"])

    def _cursor(self) -> Cursor:
        return Cursor(**self._work["cursor"])

    def _save(self, *, events: Sequence[Event] = ()) -> None:
        self._run = self._store.save(self.lease, work=self._work, new_events=events)
