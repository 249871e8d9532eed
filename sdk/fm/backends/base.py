"""Seam 1, the Backend, in three parts: runs, models and files.

Everything here is a question or an order that can be answered at once. What takes time (following events, waiting,
plotting) is written once above it, in `fm.run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from fm.layout import Storage
from fm.lifecycle import Status
from fm.request import TrainRequest
from fm.types import (
    Caller,
    Checkpoint,
    DataFile,
    DataRef,
    Dataset,
    Event,
    LogChunk,
    MetricRow,
    ModelRef,
    ModelVersion,
    RunRecord,
)

if TYPE_CHECKING:
    from fm.creation import DryRun
    from fm.plans import Plan, PlanTask

PAGE_LIMIT = 1000
"""The most items that one call returns, whatever it asks for."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be made: the request, and what was resolved and recorded when it was."""

    request: TrainRequest
    model: ModelRef
    train_data: DataRef
    eval_data: DataRef | None = None
    caller: Caller = field(default_factory=Caller)
    launcher: str = "process"
    experiment_id: str = ""
    priority: int = 0
    allow_oversize: bool = False


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; newest first. `name` is a glob over names, or the beginning of an id."""

    statuses: frozenset[Status] = frozenset()
    name: str | None = None
    owners: frozenset[str] = frozenset()
    after: datetime | None = None
    before: datetime | None = None
    experiment_id: str | None = None
    limit: int = 100
    cursor: str | None = None
    """The id of the last run of the page before."""


class Runs(Protocol):
    """The runs that the principal may see. Where a run is named, its id, the beginning of its id that no other has,
    or its name is meant; a name means the latest run that bears it. An unknown one raises `NotFound`."""

    def create(self, new: NewRun, *, idempotency_key: str) -> RunRecord:
        """Stores the run as QUEUED. The same key again returns the run that was made the first time."""

    def get(self, run: str) -> RunRecord: ...

    def list(self, filter: RunFilter) -> Sequence[RunRecord]: ...

    def events(self, run: str, *, after: int = 0, limit: int = PAGE_LIMIT) -> Sequence[Event]:
        """Events with a sequence number above `after`, oldest first."""

    def follow(self, run: str, *, after: int = 0) -> Iterator[Event]:
        """The same, and those to come, each once and without a gap, until the one with which the run ends. The one
        question that takes time: a backend may be told of events instead of asking for them."""

    def metrics(
        self, run: str, *, keys: Sequence[str] | None = None, after_step: int = -1, limit: int = PAGE_LIMIT
    ) -> Sequence[MetricRow]:
        """Rows of steps above `after_step`, in order."""

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        """The log from `offset` on, at most a page of it."""

    def checkpoints(self, run: str) -> Sequence[Checkpoint]:
        """The whole checkpoints, oldest first."""

    def open_checkpoint(self, run: str, step: int) -> Path:
        """A folder of this machine with the files of the newest checkpoint after `step`, brought here if need be."""

    def read_checkpoint(self, run: str, step: int, name: str, *, offset: int = 0) -> IO[bytes]:
        """One file of that checkpoint, to be read from the byte `offset` on."""

    def cancel(self, run: str, *, reason: str = "") -> RunRecord:
        """Stops the run, saving a checkpoint if it is training. Cancelling an ended run raises `Conflict`."""

    def resume(self, run: str, *, idempotency_key: str) -> RunRecord:
        """A child run that goes on from the last checkpoint of a STOPPED or FAILED one."""

    def delete(self, run: str) -> None:
        """Removes an ended run with its folder. Its registered model stays. An active run raises `Conflict`."""


class Models(Protocol):
    """The registry. A model is named `a.b.c` (its latest version), `a.b.c@alias` or `a.b.c/3`."""

    def get(self, ref: str) -> ModelVersion: ...

    def list(self, *, name: str | None = None, limit: int = PAGE_LIMIT) -> Sequence[ModelVersion]:
        """Versions whose name fits the glob `name`, newest first."""

    def alias(self, ref: str, alias: str, *, remove: bool = False) -> ModelVersion:
        """Points `alias` at the version, or takes it away."""

    def open(self, ref: str) -> Path:
        """A folder of this machine with the version's files, brought here if need be, checked against their digests."""

    def read(self, ref: str, name: str, *, offset: int = 0) -> IO[bytes]:
        """One file of the version, to be read from the byte `offset` on."""

    def delete(self, ref: str) -> None:
        """Removes a version; `Conflict` while others are based on it or a run that has not ended uses it."""


class Files(Protocol):
    """Data sets. One in the file store is known by its digest, and belongs to the principal's team.

    `begin`, `append` and `finish` are an upload, of which nothing is seen before its end; it can be cut anywhere and
    goes on from where `begin` says. `fm.sending.send` is the loop around them, the same for every backend.
    """

    def put(self, path: str, *, digest: str, bytes: int, rows: int | None) -> DataRef:
        """Makes checked data known to the backend, and returns what a run refers to it by. Where trainings read it from
        its place, it stays there; else it is sent to the file store, unless the team has it there already."""

    def begin(self, digest: str, files: Sequence[DataFile]) -> int:
        """Starts or goes on with an upload; `files` are in the order of their names. Returns how many bytes have
        arrived: all of them if the team has the data set already."""

    def append(self, digest: str, offset: int, part: bytes) -> int:
        """Takes the next bytes. Returns how many have arrived. `Conflict` if they don't follow what has arrived."""

    def finish(self, digest: str, *, name: str, rows: int | None = None, sensitive: bool = False) -> Dataset:
        """Checks the digest and keeps the data set. `DataChanged` if it is another; then nothing is kept."""

    def get(self, digest: str) -> Dataset: ...

    def list(self, *, limit: int = PAGE_LIMIT) -> Sequence[Dataset]:
        """The team's data sets, newest first."""

    def listing(self, digest: str) -> Sequence[DataFile]:
        """The files of a data set."""

    def read(self, digest: str, name: str, *, offset: int = 0) -> IO[bytes]:
        """One file of a data set, to be read from the byte `offset` on. `Forbidden` if the set is sensitive."""

    def delete(self, digest: str) -> None:
        """Takes the data set from the team; `Conflict` while a run that has not ended uses it."""


class Machine(Protocol):
    """The place where trainings run, asked about a run before it is made."""

    def examine(
        self, request: TrainRequest, launcher: str, *, plan_only: bool = False
    ) -> tuple[TrainRequest, ModelRef]:
        """Resolves the request's model, and checks all that needs no data; with `plan_only`, not whether this place
        has what the training needs. Returns the request as it is to be stored, too."""

    def admit(self, prepared: DryRun) -> None:
        """Raises where it would fill the disk, or certainly not fit the devices."""

    def plan(self, task: PlanTask) -> Plan:
        """What the training needs."""


class Backend(Protocol):
    """Where runs are kept and asked for."""

    name: str
    trains_here: bool
    """Whether trainings run on this machine: then hub names are looked up here, and what training needs must be
    installed and have room. Not so with a server that has no agent, and with a fake, which trains nothing: they take
    any hub name."""
    poll_seconds: float
    """How long to wait between two questions when following; 0 where asking is what makes time pass."""

    @property
    def storage(self) -> Storage | None:
        """Where run folders lie, if that is on this machine."""

    @property
    def pending(self) -> Path | None:
        """Folder on a local disk for the keys of creates that were not acknowledged yet; None where no run outlives
        the process."""

    @property
    def machine(self) -> Machine | None:
        """Who answers for the place where trainings run; None where this process does."""

    @property
    def runs(self) -> Runs: ...

    @property
    def models(self) -> Models: ...

    @property
    def files(self) -> Files: ...

    def close(self) -> None: ...

