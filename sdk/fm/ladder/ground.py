"""Where a preflight trains: a run store in memory and a storage root of its own, of which nothing remains.

Every training is an ordinary run: stored, claimed by an agent, checked, launched as the request's launcher does it. The
agent works in the calling thread, whenever the run is asked about; so it ends with the call, and its trainings with it.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fm import plugins
from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.base import NewRun
from fm.backends.stored import StoreBackend
from fm.creation import DryRun, submit
from fm.errors import RequestError
from fm.files import make_private
from fm.job import Job, Stage
from fm.launching import Handle, Launcher, Poll
from fm.layout import StageFolder, Storage
from fm.lifecycle import EventType, Status
from fm.pending import new_key
from fm.planning import is_plainly_small, refuse_oversize
from fm.run import Run
from fm.store.database import IN_MEMORY
from fm.store.store import RunStore
from fm.types import CLUSTER_LAUNCHER, Principal, RunRecord

_POLL_SECONDS = 0.25
_PLACE = "preflight"

Say = Callable[[str], None]
"""Told what is going on, a line at a time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one process of a training took and computed."""

    header: dict[str, Any]
    steps: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that has ended, and what it left."""

    run: Run
    folder: StageFolder
    problem: str
    """Why it did not come to its end; empty if it did."""
    seconds: float

    @property
    def model(self) -> dict[str, Any]:
        """What it said of model and machine once it was ready; empty if it did not come so far."""
        said = [event.data for event in self.run.events() if event.type is EventType.MODEL_INITIALIZED]
        return said[-1] if said else {}

    def facts(self) -> list[Facts]:
        """What each process wrote, by rank."""
        files = sorted(self.folder.ranks.glob("*.jsonl"), key=lambda path: int(path.stem))
        lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        return [Facts(of_rank[0], of_rank[1:]) for of_rank in lines]


class _WithFacts:
    """Starts what another launcher starts, and has each process write what it itself took and computed."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        Job.read(folder).model_copy(update={"rank_facts": True}).write(folder)
        return self._launcher.start(run, folder, stage)

    def poll(self, handle: Handle) -> Poll:
        return self._launcher.poll(handle)

    def signal(self, handle: Handle, how: Literal["stop", "kill"]) -> None:
        self._launcher.signal(handle, how)


class Ground:
    """A store, an agent and a storage root. Use `private_ground`, which ends all three."""

    def __init__(self, storage: Storage, say: Say) -> None:
        self.storage = storage
        self._say = say
        self._checked: dict[tuple[str, str | None], Path] = {}
        """The folder of the first check of training and evaluation data, by their digests."""
        store = RunStore(IN_MEMORY)
        self._agent = Agent(
            store,
            storage,
            lambda name: _WithFacts(plugins.load("launchers", name)()),
            Devices.of_this_machine(),
            _PLACE,
            cluster=True,
        )
        self._backend = StoreBackend(
            _PLACE, store, storage, Principal(user=_PLACE), tend=self._agent.step, poll_seconds=_POLL_SECONDS
        )

    def train(self, prepared: DryRun) -> Trained:
        """Trains what `fm.creation.prepare` has checked, to its end, without a second attempt."""
        run = Run(self._backend, submit(prepared, self._backend))
        data = (prepared.train_data.digest, prepared.eval_data.digest if prepared.eval_data else None)
        if data in self._checked:
            # As for a second attempt: the agent takes what the check of the same data found before.
            shutil.copytree(self._checked[data], self.storage.run(run.id).check.path)
        trained = self._follow(run)
        self._checked.setdefault(data, self.storage.run(run.id).check.path)
        return trained

    def train_on(self, earlier: Trained, *, step: int) -> Trained:
        """Trains on from the checkpoint of `step`, as `run.resume()` does; later checkpoints are removed for it."""
        for checkpoint in earlier.folder.checkpoints.glob("step-*"):
            if checkpoint != earlier.folder.checkpoint(step):
                shutil.rmtree(checkpoint)
        parent = earlier.run.record
        new = NewRun(
            parent.request, parent.model, parent.train_data, parent.eval_data, parent.caller, parent.launcher,
            allow_oversize=parent.allow_oversize,
        )
        record = self._backend.store.create(new, new_key(), self._backend.principal, parent=parent)
        return self._follow(Run(self._backend, record))

    def end(self) -> None:
        """Ends every process that was started here, and removes all files."""
        self._agent.kill()
        self._backend.close()
        # A process that is only just being started finds its folder gone, and ends by itself.
        for _ in range(40):
            shutil.rmtree(self.storage.root, ignore_errors=True)
            if not self.storage.root.exists():
                return
            time.sleep(_POLL_SECONDS)

    def _follow(self, run: Run) -> Trained:
        began, problem, told = time.monotonic(), "", 0
        while not run.refresh().status.is_terminal():
            events = list(run.events())
            waits = [event.message for event in events if "waits_for" in event.data]
            for message in waits[told:]:
                self._say(message)
            told = len(waits)
            if not problem and (lost := [event for event in events if event.type is EventType.REQUEUED]):
                problem = lost[0].message
                self._agent.kill()
                run.cancel()
            time.sleep(_POLL_SECONDS)
        if not problem and run.status is not Status.COMPLETED:
            problem = run.reason
        attempt = self.storage.run(run.id).attempt(max(1, run.attempt))
        return Trained(run, attempt, problem, time.monotonic() - began)


@contextmanager
def private_ground(storage: Storage, say: Say) -> Iterator[Ground]:
    """A ground below `storage`, so that it lies on a disk with as much room, and where a cluster's nodes see it."""
    ground = Ground(Storage(make_private(storage.preflights / secrets.token_hex(6))), say)
    try:
        yield ground
    finally:
        ground.end()


def with_request(prepared: DryRun, **changes: Any) -> DryRun:
    """`prepared` with another request, which is checked as every request is.

    Raises:
        RequestError: there can be no such request.
    """
    values = {**prepared.request.model_dump(), **changes}
    return replace(prepared, request=type(prepared.request).build(values))


def fits(prepared: DryRun) -> bool:
    """Whether `fm.create` would not refuse `prepared` for its size. How much memory a cluster's devices have is not
    known here: there only what is plainly small fits for certain."""
    if prepared.launcher == CLUSTER_LAUNCHER:
        return is_plainly_small(prepared)
    try:
        refuse_oversize(prepared)
    except RequestError:
        return False
    return True
