"""One run in an agent's hands, from its claim to its end, as steps that may be interrupted anywhere.

Whatever a successor must know is in the store (`fm.agent.held.Work`) before the step that needs it, so a worker can be
made anew from the store at any point: that is how a run of a dead agent is adopted.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from typing import Any

from fm.agent import processes
from fm.agent.freight import Freight
from fm.agent.grace import Grace
from fm.agent.held import HeldRun, Work
from fm.agent.ingest import Cursor, cap_log, read_news
from fm.agent.inputs import Inputs
from fm.agent.jobs import make_job
from fm.agent.signs import Silence, WatchedTime, began
from fm.errors import DiskFull, StoreError, Unavailable
from fm.filestore import FileStore
from fm.job import EXIT_DISK_FULL, EXIT_STOPPED, Stage
from fm.launching import Handle, Launcher, Life
from fm.layout import Storage
from fm.lifecycle import EventType, Fault, Status
from fm.machine import kills_for_memory
from fm.request import what_takes_less
from fm.store.leases import Lease
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
        self._held = HeldRun(store, storage, run, lease)
        self._watched, self._silence = WatchedTime(), Silence()
        self._grace = Grace(launcher, store.clock)
        self._stalled, self._kills = "", kills_for_memory()
        self._adopted = devices is None
        is_elsewhere = devices is None and not processes.is_here(self._held.work.handle or {})
        self.is_here = not is_elsewhere and run.launcher != CLUSTER_LAUNCHER
        # Where the process of an adopted run is on another machine, so are its devices.
        kept = () if is_elsewhere else self._held.work.devices
        self.devices = kept if devices is None else devices

    @property
    def run(self) -> RunRecord:
        return self._held.record

    @property
    def lease(self) -> Lease:
        return self._held.lease

    def advance(self) -> bool:
        """Does what can be done now. Returns whether the run is still this agent's.

        Raises:
            LeaseLost: another agent owns it.
        """
        try:
            if not self.run.status.is_terminal():
                self._advance()
        except Unavailable as error:
            if self._held.work.handle or isinstance(error, StoreError):
                raise  # the process goes on, or has done its work: what could not be written is written later
            self._held.requeue("the disk is full: " * isinstance(error, DiskFull) + error.message, wait=RETRY)
        return self._lingers() if self.run.status.is_terminal() else self.run.status is not Status.QUEUED

    def kill(self) -> None:
        """Ends the process, if there is one, whatever it is doing."""
        if handle := self._held.work.handle:
            self._launcher.signal(handle, "kill")

    def lives_here(self) -> bool:
        """Whether its process still runs, and on this machine."""
        handle = self._held.work.handle
        return self.is_here and handle is not None and self._launcher.poll(handle).life is not Life.EXITED

    def _lingers(self) -> bool:
        """Whether the ended run's process still holds its devices, or what it saved last is still being put out."""
        handle = self._held.work.handle
        return handle is not None and (self._grace.outlives(handle) or not self._is_put_out())

    def _advance(self) -> None:
        self._held.renew()
        work = self._held.work
        if work.stage is None and self._adopted:
            # Only a claim reserves devices.
            self._held.requeue("its agent died before starting it")
        elif work.stage is None:
            self._begin()
        elif work.handle is None:
            # An agent died between the decision to start and the note of having started.
            processes.end_leftover(self._held.stage_folder)
            self._held.requeue("its agent died while starting it")
        else:
            self._follow(work.handle)

    # Starting a stage

    def _begin(self) -> None:
        if self._held.status_now() is Status.TERMINATING:
            self._held.end(EventType.CANCELED, "cancelled before it started")
        elif (inputs := self._inputs()) is None:
            return
        elif prepared := self._prepared():
            self._begin_training(prepared, inputs)
        else:
            shutil.rmtree(self._held.folder.check.path, ignore_errors=True)
            # The lines of an earlier check are known by their numbers: those of this one are counted on.
            self._start("check", 0, inputs, None, lines=self._store.last_line(self.run.id, 0))

    def _inputs(self) -> Inputs | None:
        try:
            return self._freight.inputs(self.run)
        except Unavailable as error:
            self._held.requeue(error.message, wait=RETRY)
            return None

    def _prepared(self) -> dict[str, Any] | None:
        """What an earlier check of this run found, if one has passed and what it made is still there."""
        news = read_news(self._held.folder.check, 0, Cursor())
        passed = [event for event in news.events if event.type is EventType.CHECK_PASSED]
        return passed[-1].data if passed else None

    def _begin_training(self, prepared: dict[str, Any], inputs: Inputs) -> None:
        self._silence = Silence()
        self._start("train", self.run.attempt + 1, inputs, prepared)

    def _start(
        self, stage: Stage, attempt: int, inputs: Inputs, prepared: dict[str, Any] | None, *, lines: int = 0
    ) -> None:
        now = self._store.clock.now()
        facts = {"base_digest": prepared["base_digest"]} if prepared and "base_digest" in prepared else {}
        work = Work(stage, attempt, self.devices, cursor=Cursor(lines=lines), facts=facts)
        started = [Event(type=EventType.STARTED, time=now, message=f"attempt {attempt}", data={"attempt": attempt})]
        job = make_job(
            self._storage, self.run, inputs, stage, attempt, prepared=prepared, now=now, devices=self.devices
        )
        self._held.note(work, events=started if stage == "train" else [])
        folder = self._held.stage_folder
        job.write(folder)
        # Only now: an older attempt's process either sees the folder just made and ends, or is seen here.
        for _, older in self._held.folder.attempts():
            if older != folder:
                processes.end_leftover(older)
        handle = self._launcher.start(self._freight.as_started_here(self.run), folder, stage)
        self._held.note(replace(work, handle=handle))

    # Following a stage

    def _follow(self, handle: Handle) -> None:
        held, folder = self._held, self._held.stage_folder
        if self._freight.is_lost(folder):
            held.requeue(f"its machine was lost; {held.progress()}")
            return
        # Asked first and read second: what a process wrote before it exited is then always seen.
        poll = self._launcher.poll(handle)
        if poll.life is Life.ALIVE:
            self._kills = kills_for_memory()
        held.take_in()
        cap_log(folder, held.work.cursor)
        put_out = self._is_put_out()
        if self.run.status.is_terminal():
            return
        now = self._watched.look(self._store.clock.now())
        silent = self._silence.listen(folder, held.work.cursor, now)
        lost = poll.life is Life.UNKNOWN and (held.work.finished or silent > self._silence.gone_after)
        if poll.life is Life.EXITED or lost:
            while held.take_in():
                pass
            if put_out and not self.run.status.is_terminal():
                self._exited(poll.code, lost_after=silent if lost else None)
        elif held.status_now() is Status.TERMINATING:
            self._grace.stop(handle, now, self._silence.save_takes)
        elif held.work.stage == "train" and poll.life is Life.ALIVE and silent > self._silence.stalled_after:
            # Its next poll finds it dead: from there on it is a crash like any other.
            self._stalled = f"it stood still at step {self.run.step} for {silent.total_seconds() / 60:.0f} minutes"
            self.kill()

    def _is_put_out(self) -> bool:
        return self._held.work.stage != "train" or self._freight.is_put_out(self._held.stage_folder)

    # Ending

    def _exited(self, code: int | None, *, lost_after: timedelta | None) -> None:
        held = self._held
        stopping = held.status_now() is Status.TERMINATING
        if held.work.stage == "train" and held.work.finished:
            self._register()
        elif stopping:
            held.end(EventType.CANCELED, "cancelled; " + held.progress(), exit_code=code)
        elif held.work.stage == "check" and (prepared := self._prepared()):
            if not (self.is_here or self.run.launcher == CLUSTER_LAUNCHER):
                held.requeue("its data was checked on another machine")
            elif inputs := self._inputs():
                self._begin_training(prepared, inputs)
        elif lost_after is not None:
            minutes = int(lost_after.total_seconds() / 60)
            held.requeue(f"nothing was heard of its process for {minutes} minutes; " + held.progress())
        elif code == EXIT_DISK_FULL:
            held.requeue("the disk is full; it goes on once there is space", wait=RETRY)
        elif code == EXIT_STOPPED:
            held.requeue("its process was stopped from outside; " + held.progress())
        else:
            # A process that was ended for want of memory since this one was last seen alive is most likely this one.
            trained_here = self.is_here and held.work.stage == "train" and not self._stalled
            self._crashed(code, starved=trained_here and kills_for_memory() > self._kills)

    def _crashed(self, code: int | None, *, starved: bool = False) -> None:
        reason = f"{self._stalled or _way_of_dying(code, starved=starved)}; {self._held.progress()}"
        if self.run.fruitless + 1 < FRUITLESS_LIMIT:
            self._held.requeue(reason, counts_as_attempt=True, starved=starved)
            return
        remedy = f"\n  → {what_takes_less(self.run.request, of_gpu=False)}" * starved
        why = f"{FRUITLESS_LIMIT} attempts in a row made no progress; the last: {reason}{remedy}"
        fault = Fault.USER if starved else Fault.INFRASTRUCTURE
        self._held.end(EventType.FAILED, why, fault=fault, exit_code=code)

    def _register(self) -> None:
        placing = self._freight.place(self.run, self._held.stage_folder)
        if not placing.is_done:
            return
        if (manifest := placing.result()) is None:
            self._crashed(None)
            return
        version, now = self._freight.version(self.run, manifest, self._held.work.facts), self._store.clock.now()
        ran = (now - began(self._held.stage_folder, self.run.attempt_started_at or now)).total_seconds()
        event = Event(type=EventType.COMPLETED, time=now, message="done", data={"ran_seconds": max(0.0, ran)})
        self._held.complete(event, version)


def _way_of_dying(code: int | None, *, starved: bool) -> str:
    """In words, how a process ended that was to go on. `starved`: whether its system was ending processes for want of
    memory meanwhile, which it does not say of each."""
    how = "nobody saw how" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"its process died ({how}{', while the machine was out of memory' * starved})"
