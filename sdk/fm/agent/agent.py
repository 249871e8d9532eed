"""The agent: owns runs under leases, and moves each on by small steps."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache

from fm.agent import processes
from fm.agent.devices import Devices
from fm.agent.inputs import are_apart
from fm.agent.worker import Worker
from fm.errors import Conflict, FMError, LeaseLost, RequestError, Unavailable
from fm.files import passes
from fm.filestore import FileStore, FolderStore
from fm.launching import Launcher
from fm.layout import RunFolder, Storage
from fm.lifecycle import EventType, Fault
from fm.store.leases import Lease
from fm.store.store import RunStore
from fm.types import CLUSTER_LAUNCHER, DEFAULT_LAUNCHER, Event, RunRecord

logger = logging.getLogger("fm.agent")

_MOST_ON_CLUSTER = 16
"""Runs that an agent has on a cluster at once; each is a question every few seconds."""
_LOOK_EVERY = timedelta(seconds=2)
"""How long an agent without free devices waits between two looks for runs that need none."""


class Agent:
    """Claims queued runs that fit the machine's free devices, and sees them through."""

    def __init__(
        self,
        store: RunStore,
        storage: Storage,
        launchers: Callable[[str], Launcher],
        devices: Devices,
        place: str,
        *,
        files: FileStore | None = None,
        launcher: str = DEFAULT_LAUNCHER,
        cluster: bool = False,
    ) -> None:
        """`launchers` gives the launcher of a name, `place` names where there is at most one agent at a time: the
        next one there takes over at once what this one leaves. `files` is the storage root where none is given.
        `launcher` starts the runs that leave it to the agent; with `cluster` it takes those for a cluster, too."""
        self.place = place
        # Told to everybody who sees the run: the machine's name, and none of its folders.
        self.id = f"agent-{place.partition(':')[0]}-{secrets.token_hex(4)}"
        self._store = store
        self._storage = storage
        self._files = files or FolderStore(storage.root)
        self._apart = are_apart(self._files, storage)
        self._launchers = cache(launchers)  # one of a name: what it has learnt of a cluster holds for all its runs
        self._launcher = launcher
        self._cluster = cluster or launcher == CLUSTER_LAUNCHER
        self._looked_at = store.clock.now() - _LOOK_EVERY
        self._devices = devices
        self._workers: dict[str, Worker] = {}
        self._given_up: list[Worker] = []
        """Those whose runs are not this agent's any more, as long as their processes live on this machine."""

    @property
    def busy(self) -> bool:
        """Whether it owns a run, or its machine has the process of one that it owned."""
        return bool(self._workers or self._given_up)

    def adopt(self) -> None:
        """Takes over the runs that no living agent owns."""
        for run, lease in self._store.adopt(self.id, self.place):
            logger.info("adopted %s (%s)", run.name, run.status.value)
            self._own(run, lease, None)

    def end_strays(self) -> None:
        """Ends the processes below the working folder whose runs are not this agent's any more, if nobody else can see
        that folder: while it was away, its runs were taken over and begun again on other machines."""
        if not self._apart:
            return
        known, _ = self._store.in_use()
        for folder in self._storage.runs.glob("*"):
            if folder.name in known - self._workers.keys():
                run = RunFolder(folder)
                for stage in (run.check, *(attempt for _, attempt in run.attempts())):
                    processes.end_leftover(stage)

    def step(self) -> None:
        """Moves every run on as far as it goes now, then claims what fits."""
        for run_id, worker in list(self._workers.items()):
            if not self._advance(worker):
                del self._workers[run_id]
                logger.info("%s is %s", worker.run.name, worker.run.status.value)
        self._given_up = [worker for worker in self._given_up if self._lives_here(worker)]
        self._devices.keep(i for worker in (*self._workers.values(), *self._given_up) for i in worker.devices)
        while self._claim():
            pass

    def kill(self) -> None:
        """Ends the processes of all its runs, whatever they are doing. Its next step would find them crashed."""
        for worker in self._workers.values():
            self._kill(worker)

    def _claim(self) -> bool:
        """Takes a run, if there is one that may start now. A cluster has a queue of its own, so only their number
        bounds the runs that are on it."""
        now = self._store.clock.now()
        away = sum(worker.run.launcher == CLUSTER_LAUNCHER for worker in self._workers.values())
        here = sum(worker.is_here for worker in self._workers.values()) + len(self._given_up)
        free = self._devices.free(here > 0)
        cluster = self._cluster and away < _MOST_ON_CLUSTER and (free > 0 or now - self._looked_at >= _LOOK_EVERY)
        if not (free or cluster):
            return False
        claimed = self._store.claim(
            self.id, self.place, free=free, total=self._devices.total, cluster=cluster, launcher=self._launcher
        )
        if claimed is None:
            self._looked_at = now
            return False
        run, lease = claimed
        logger.info("claimed %s", run.name)
        here = run.launcher != CLUSTER_LAUNCHER
        self._own(run, lease, self._devices.take(run.request.num_processes) if here else ())
        return True

    def _own(self, run: RunRecord, lease: Lease, devices: tuple[int, ...] | None) -> None:
        try:
            launcher = self._launchers(run.launcher)
            worker = Worker(self._store, self._storage, self._files, launcher, run, lease, devices)
            self._devices.mark(worker.devices)
            self._workers[run.id] = worker
        except Exception as error:
            self._fail(run, lease, error)  # the next step frees its devices

    def _advance(self, worker: Worker) -> bool:
        try:
            return worker.advance()
        except LeaseLost as error:
            logger.warning("%s", error)
            if self._apart:
                self._kill(worker)  # its new owner can neither see nor follow a process in this folder
            self._given_up.append(worker)
            return False
        except Unavailable as error:
            # Such as a full disk under the store: nothing can be noted now, and nothing is lost by trying again.
            logger.warning("%s: %s", worker.run.name, error)
            return True
        except Exception as error:
            if passes(error):
                logger.warning("%s: %s", worker.run.name, error)
                return True
            # Whatever it is, it concerns this run: an agent that ended with it would leave all the others, and the
            # next one would meet it again.
            self._kill(worker)
            self._given_up.append(worker)
            self._fail(worker.run, worker.lease, error)
            return False

    def _kill(self, worker: Worker) -> None:
        try:
            worker.kill()
        except Exception as error:  # a launcher's, whatever it is
            logger.warning("%s: its process can't be ended: %s", worker.run.name, error)

    def _lives_here(self, worker: Worker) -> bool:
        try:
            return worker.lives_here()
        except Exception as error:
            logger.warning("%s: its process can't be asked: %s", worker.run.name, error)
            return False  # what can't be asked can't be waited for

    def _fail(self, run: RunRecord, lease: Lease, error: Exception) -> None:
        known = isinstance(error, FMError | OSError)
        logger.error("%s: %s", run.name, error, exc_info=None if known else error)
        message = str(error) if isinstance(error, FMError) else f"{type(error).__name__}: {error}"
        fault = Fault.USER if isinstance(error, RequestError) else Fault.INFRASTRUCTURE
        data = {"fault": (fault if known else Fault.INTERNAL).value}
        event = Event(type=EventType.FAILED, time=self._store.clock.now(), message=message, data=data)
        with suppress(LeaseLost, Conflict):  # it has ended meanwhile, or another agent's it is
            self._store.save(lease, new_events=[event])
