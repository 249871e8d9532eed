"""The values that travel: a request, a run, an event, a checkpoint, a model version. All frozen, all JSON-able.

Requests refuse unknown fields, so that a typing error is never silently ignored. Records accept them, so that an
older client reads a newer store.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fm.duration import Duration
from fm.errors import RequestError
from fm.lifecycle import EventType, Fault, Status
from fm.names import check_model_name, check_run_name

Method = Literal["lora", "full"]


class TaskType(StrEnum):
    """What the rows of the data are, and which of their tokens are trained on."""

    CHAT_COMPLETION = "CHAT_COMPLETION"
    """``{"messages": [{"role", "content"}, …]}``; the chat template is applied; assistant turns are trained."""
    INSTRUCTION_FINETUNE = "INSTRUCTION_FINETUNE"
    """``{"prompt", "response"}``; the text as it stands; the response is trained."""
    CONTINUED_PRETRAIN = "CONTINUED_PRETRAIN"
    """Raw text; every token is trained."""


class _Request(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_enum_values=False, protected_namespaces=(), defer_build=True
    )


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)


class LoraConfig(_Request):
    """The adapter's shape. Defaults follow "LoRA without regret" (Thinking Machines, 2025): all linear layers."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter, as in ``("q_proj", "v_proj")``."""


class TrainRequest(_Request):
    """What to train on what. Where it is kept and run (backend, launcher) is not part of it.

    The first twelve fields are those of the reference, in its order; `fm.create` documents all of them.
    """

    model: str = Field(min_length=1)
    train_data_path: str = Field(min_length=1)
    register_to: str | None = None
    experiment_path: str = ""
    task_type: TaskType = TaskType.CHAT_COMPLETION
    eval_data_path: str | None = None
    eval_prompts: tuple[str, ...] = ()
    custom_weights_path: str | None = None
    training_duration: str = "1ep"
    learning_rate: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    context_length: int | None = Field(None, ge=8)
    method: Method = "lora"
    lora: LoraConfig = LoraConfig()
    batch_size: int = Field(16, ge=1, le=65536)
    seed: int = Field(17, ge=0, lt=2**31)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.02, ge=0, lt=1)
    """Share of the training over which the rate climbs to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    packing: Literal["auto"] | bool = "auto"
    train_on: Literal["last", "all"] = "last"
    """Which assistant turns of a chat are trained."""
    eval_interval: str = "auto"
    """A duration; "auto" is ten times over the training. The end is always evaluated."""
    save_interval: str = "auto"
    """A duration; "auto" is ten times over the training."""
    keep_checkpoints: int = Field(2, ge=1)
    trackers: tuple[Literal["mlflow", "wandb", "tensorboard"], ...] = ()
    num_processes: int = Field(1, ge=1, le=1024)
    name: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Validates `values`.

        Raises:
            RequestError: names the first field that is wrong, and what it may be.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _translate(error) from None

    @field_validator("training_duration", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> str:
        return str(Duration.parse(value))

    @field_validator("eval_interval", "save_interval", mode="before")
    @classmethod
    def _interval(cls, value: Any) -> Any:
        return "auto" if value in (None, "auto") else str(Duration.parse(value))

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        # Public scripts for the reference pass the string "5e-7".
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise RequestError(
                    f"learning_rate {value!r} is not a number", field="learning_rate", hint="write 1e-4"
                ) from None
        return value

    @field_validator("task_type", mode="before")
    @classmethod
    def _task(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("eval_prompts", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise RequestError("eval_prompts is one text, not a list", field="eval_prompts", hint="write [text]")
        return tuple(value or ())

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value or ())

    @field_validator("lora", mode="before")
    @classmethod
    def _lora(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("register_to")
    @classmethod
    def _register_to(cls, value: str | None) -> str | None:
        return check_model_name(value, parts=(2, 3), field="register_to") if value else None

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return check_run_name(value) if value is not None else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task_type is TaskType.CONTINUED_PRETRAIN and self.train_on != "last":
            raise RequestError(
                'train_on chooses assistant turns, and CONTINUED_PRETRAIN has none', field="train_on",
                hint="leave train_on out",
            )
        return self

    @property
    def duration(self) -> Duration:
        """`training_duration`, parsed."""
        return Duration.parse(self.training_duration)


def _translate(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "request"
    if first["type"] == "extra_forbidden":
        import difflib

        near = difflib.get_close_matches(field, TrainRequest.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "`ftctl create --help` lists the parameters"
        return RequestError(f"there is no parameter {field}", field=field, hint=hint)
    if first["type"] == "missing":
        return RequestError(f"{field} is required", field=field, hint=f"pass {field}=…")
    return RequestError(f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}; got {first['input']!r}", field=field)


class ModelRef(_Record):
    """What `model=` was resolved to."""

    kind: Literal["path", "registered", "preset", "hub"]
    name: str
    """The path, the registered version as ``a.b.c/3``, the preset, or the hub's ``org/name``."""
    path: str | None = None
    """Folder with the weights; None for a preset, and for a hub model until it is fetched."""
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
    launcher: str = "process"
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

    step: int
    path: str
    created_at: datetime
    attempt: int
    bytes: int
    metrics: dict[str, float] = Field(default_factory=dict)


class ModelVersion(_Record):
    """A registered model. Its files never change; aliases point at versions."""

    name: str
    version: int
    kind: Literal["adapter", "full"]
    path: str
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
    """On whose behalf a backend acts. Everything it shows and counts lies inside `team`."""

    user: str
    team: str = "local"
