"""The values that travel: a run, an event, a checkpoint, a model version. All frozen, all JSON-able.

They accept unknown fields, so that an older client reads a newer store.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

from fm.lifecycle import EventType, Fault, Status
from fm.request import TrainRequest

Scope = Literal["read", "submit", "admin"]
"""What a token is good for: asking; making and changing; administering the store. None includes another."""
DEFAULT_LAUNCHER = "process"
"""Starts processes on the agent's own machine."""
CLUSTER_LAUNCHER = "ray"
"""Starts them on a Ray cluster, and needs none of the agent's devices."""
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)


class ModelRef(_Record):
    """What `model=` was resolved to."""

    kind: Literal["path", "registered", "preset", "hub"]
    name: str
    """The path, the registered version as ``a.b.c/3``, the preset, or the hub's ``org/name``."""
    path: str | None = None
    """Folder with the weights on this machine; None for a preset, and for what is not here yet."""
    key: str | None = None
    """Of a registered model: what the file store calls its folder. Set by the store alone."""
    team: str | None = None
    """Of a registered model: the team that owns it. None: the run's own."""
    adapter_of: ModelRef | None = None
    """Set when `path` holds an adapter: the base that it belongs to."""


class DataRef(_Record):
    """Training or evaluation data as it was when the run was created."""

    path: str
    digest: str
    """SHA-256 over names and bytes of all files."""
    bytes: int
    rows: int | None = None
    """None where `validate_inputs=False` left the rows uncounted."""
    stored: bool = False
    """Whether the file store has it, as the data set of that digest; then `path` only says where it came from."""


class DataFile(NamedTuple):
    """A file of a data set: its name, without folders, and its size."""

    name: str
    bytes: Annotated[int, Field(strict=True, ge=0)]


class Dataset(_Record):
    """A data set in the file store, as a team has it. Its bytes never change."""

    digest: str
    """SHA-256 over names and bytes of all files; what the data set is known by."""
    name: str
    """What its owner calls it; need not be unique."""
    bytes: int
    rows: int | None = None
    """None where nobody has counted them."""
    sensitive: bool = False
    """Whether its text may leave in no way: no download, no samples in events, no external tracker."""
    owner: str = ""
    team: str = "local"
    created_at: datetime


class DataCounts(_Record):
    """What became of the rows once they were tokenised."""

    examples: int = 0
    """Examples that are trained on, after dropping."""
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens that carry a label."""
    truncated: int = 0
    """Rows cut to the context length."""
    dropped: int = 0
    """Rows of which nothing trainable was left."""


class Caller(_Record):
    """Who asked, from where: enough to run the same thing again."""

    user: str = ""
    host: str = ""
    python: str = ""
    """The interpreter that called, and that trains."""
    cwd: str = ""
    env: dict[str, str] = Field(default_factory=dict)
    """The allow-listed part of the environment; never a secret."""
    git_commit: str | None = None
    git_dirty: bool | None = None
    packages: dict[str, str] = Field(default_factory=dict)


class RunRecord(_Record):
    """One run, as the store keeps it. Times are UTC."""

    id: str
    name: str
    status: Status
    request: TrainRequest
    team: str = "local"
    owner: str = ""
    launcher: str = DEFAULT_LAUNCHER
    priority: int = 0
    """Of the runs of its team that wait, the one with the highest goes first; of several, the oldest."""
    allow_oversize: bool = False
    """Whether it is tried where it certainly doesn't fit."""
    model: ModelRef
    train_data: DataRef
    eval_data: DataRef | None = None
    caller: Caller = Caller()
    parent: str | None = None
    """The run whose last checkpoint this one goes on from."""
    experiment_id: str = ""
    reason: str = ""
    """One sentence on why the status is what it is."""
    fault: Fault | None = None
    """Who has to act on a failure."""
    exit_code: int | None = None
    actor: str = ""
    """Who or what caused the last change of status."""
    attempt: int = 0
    """Training starts so far."""
    fruitless: int = 0
    """Attempts in a row that ended without a newer whole checkpoint."""
    starved: int = 0
    """Attempts that died while their machine was out of memory. Each is followed by one that computes half as much at
    once, and keeps no activations."""
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    estimated_end_time: datetime | None = None
    running_seconds: float = 0.0
    """Training time of all finished attempts, without queue and downtime."""
    attempt_started_at: datetime | None = None
    step: int = 0
    total_steps: int | None = None
    """None while unknown, as for a wall-clock budget before its speed is measured."""
    epoch: float = 0.0
    tokens: int = 0
    """Non-padding tokens seen by the training."""
    checkpoint_step: int | None = None
    counts: DataCounts | None = None
    eval_counts: DataCounts | None = None
    registered_model: str | None = None
    """``catalog.schema.model/version`` once COMPLETED, if `register_to` was given."""


class Event(_Record):
    """One line of a run's history. `seq` counts from 1 without gaps within the run."""

    seq: int = 0
    type: EventType
    time: datetime
    message: str
    data: dict[str, Any] = Field(default_factory=dict)
    attempt: int | None = None
    line: int | None = None
    """Where a trainer wrote it: the line in its attempt's file. None for what the store or the agent adds."""

    def is_terminal_state(self) -> bool:
        """Whether the run ended with this event."""
        return self.type.is_terminal


class MetricRow(_Record):
    """Figures of one optimiser step."""

    step: int
    time: datetime
    values: dict[str, float]


class LogChunk(_Record):
    """A piece of the run's log. Pass `next_offset` to read on."""

    text: str
    next_offset: int


class Checkpoint(_Record):
    """A whole checkpoint, from which training can go on."""

    run_id: str = ""
    step: int
    path: str | None
    """Its folder on this machine; None where it has to be brought here first."""
    created_at: datetime
    attempt: int
    bytes: int
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file, by its name below `path`."""
    metrics: dict[str, float] = Field(default_factory=dict)


class ModelVersion(_Record):
    """A registered model. Its files never change; aliases point at versions."""

    name: str
    version: int
    kind: Literal["adapter", "full"]
    key: str = ""
    """What the file store calls its folder."""
    path: str | None = None
    """Its folder on this machine; None where it has to be brought here first."""
    files: dict[str, str]
    """SHA-256 of each file, by its name below `path`."""
    bytes: int
    run_id: str | None
    base: ModelRef | None
    base_digest: str | None = None
    lineage: dict[str, Any] = Field(default_factory=dict)
    """Request, data digests, package versions, metrics."""
    aliases: tuple[str, ...] = ()
    created_at: datetime
    team: str = "local"

    @property
    def ref(self) -> str:
        """``catalog.schema.model/version``."""
        return f"{self.name}/{self.version}"


class Principal(_Record):
    """On whose behalf a backend acts. What it shows and counts lies inside `team`, but for what `team` was granted."""

    user: str
    team: str = "local"
    scopes: frozenset[Scope] = ALL_SCOPES
    """Who opens a store without a token may do everything with it."""
    token_id: str = ""
    """The token that was shown; empty if none was needed."""
    address: str = ""
    """Where the call came from, if that is known."""
