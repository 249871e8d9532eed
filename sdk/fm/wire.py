"""What only HTTP needs: bodies, pages, and errors as problems (RFC 9457) that keep class, message, hint and fields.

Both sides import this. A server refuses fields of a body that it does not know; a client passes over those of an
answer, so that each may be the newer one.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from fm import errors
from fm.errors import DataError, DataFault, FMError
from fm.request import TrainRequest
from fm.types import Caller, Checkpoint, DataFile, DataRef, Dataset, Event, MetricRow, ModelRef, ModelVersion, RunRecord

API = 1
"""The number in the paths: `/v1`."""
PREFIX = f"/v{API}"
REQUEST_ID = "X-Request-ID"
SERVER_VERSION = "X-FM-Version"
IDEMPOTENCY_KEY = "Idempotency-Key"
PROBLEM = "application/problem+json"
KEEP_ALIVE_SECONDS = 15.0
"""How long a stream of events is silent at most."""
UNKNOWN_ROUTE = "unknown_route"
"""Code of the answer to a request that this version of the server knows nothing of."""
IN_PROGRESS = "in_progress"
"""Code of the one conflict that passes by itself: the same is being done by somebody else."""
DIGEST = r"^[0-9a-f]{64}$"


class _Body(BaseModel):
    # Built at once: FastAPI warns of schemas that are not.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)


class Data(_Body):
    """A data set by its digest. `rows` is what the client counted; None where it did not look."""

    digest: str = Field(pattern=DIGEST)
    bytes: StrictInt = Field(ge=0)
    rows: StrictInt | None = Field(None, ge=0)

    @classmethod
    def of(cls, ref: DataRef) -> Data:
        return cls(digest=ref.digest, bytes=ref.bytes, rows=ref.rows)


class Inquiry(_Body):
    """Can this be trained there? Whatever the data, or on data of this size."""

    request: TrainRequest
    launcher: str = Field("process", max_length=100)
    train_data: Data | None = None
    plan_only: StrictBool = False
    allow_oversize: StrictBool = False


class Examined(_Answer):
    """The request as it would be stored, and what its model was resolved to."""

    request: TrainRequest
    model: ModelRef


class PlanInquiry(_Body):
    """What would this training need? Its data must have been uploaded."""

    request: TrainRequest
    train_data: Data
    device: str | None = Field(None, max_length=100)
    device_memory: StrictInt | None = Field(None, gt=0)
    price_per_hour: float | None = Field(None, ge=0)


class Asker(_Body):
    """Who asks, as the run records it. What decides how a training is run, a client can't say."""

    host: str = Field("", max_length=255)
    cwd: str = Field("", max_length=4096)
    git_commit: str | None = Field(None, max_length=64)
    git_dirty: StrictBool | None = None
    packages: dict[str, str] = Field(default_factory=dict, max_length=100)

    @classmethod
    def of(cls, caller: Caller) -> Asker:
        return cls.model_validate(caller.model_dump(include=set(cls.model_fields)))


class Submission(_Body):
    """A run to be made."""

    request: TrainRequest
    model: str | None = Field(None, max_length=500)
    """The model as it was resolved before, as ``a.b.c/3`` for a request that says ``a.b.c``; None: resolve it now."""
    train_data: Data
    eval_data: Data | None = None
    launcher: str = Field("process", max_length=100)
    priority: StrictInt = Field(0, ge=-100, le=100)
    caller: Asker = Asker()
    allow_oversize: StrictBool = False


class Announcement(_Body):
    """The files of a data set that is to be sent, in the order of their names."""

    files: tuple[DataFile, ...] = Field(min_length=1, max_length=1000)


class Naming(_Body):
    """What is recorded of a data set beside its bytes."""

    name: str = Field(min_length=1, max_length=255)
    rows: StrictInt | None = Field(None, ge=0, le=2**62)
    sensitive: StrictBool = False


class Cancellation(_Body):
    reason: str = Field("", max_length=1000)


class AliasChange(_Body):
    """Points `alias` at the version that `ref` names, or takes it away."""

    ref: str = Field(max_length=500)
    alias: str = Field(max_length=100)
    remove: StrictBool = False


class RunPage(_Answer):
    runs: tuple[RunRecord, ...]
    next_cursor: str | None
    """Where the next page begins; None after the last run."""


class EventPage(_Answer):
    events: tuple[Event, ...]


class MetricPage(_Answer):
    metrics: tuple[MetricRow, ...]


class CheckpointPage(_Answer):
    checkpoints: tuple[Checkpoint, ...]


class Arrived(_Answer):
    """How many bytes of a data set have been taken in."""

    bytes: int


class Listing(_Answer):
    files: tuple[DataFile, ...]


class DatasetPage(_Answer):
    datasets: tuple[Dataset, ...]


class ModelPage(_Answer):
    models: tuple[ModelVersion, ...]


class Info(_Answer):
    """Who answers, and what it can do."""

    name: Literal["ftctl"] = "ftctl"
    version: str
    api: int = API
    routes: tuple[str, ...]
    """As ``GET /v1/runs``."""
    user: str
    team: str
    scopes: tuple[str, ...]
    poll_seconds: float
    """How long a client waits between two questions when it follows a run."""


class Problem(_Answer):
    """An error's answer, RFC 9457. `code` names the class and stays; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    hint: str = ""
    retryable: bool = False
    request_id: str = ""
    fields: dict[str, Any] = Field(default_factory=dict)
    """What errors of this class carry beside message and hint, as a request error's `field` or the data's `faults`."""


STATUS_OF: dict[type[FMError], int] = {
    FMError: 500,
    errors.RequestError: 400,
    errors.DataError: 422,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unauthorised: 401,
    errors.Forbidden: 403,
    errors.Damaged: 500,
    errors.MissingExtra: 501,
    errors.Unavailable: 503,
    errors.DiskFull: 507,
    errors.RunFailed: 409,
    errors.RunStopped: 409,
    errors.WaitTimeout: 504,
    errors.LeaseLost: 409,
}
"""The HTTP status of each class; of one that is not here, its base's."""
_CARRIED = frozenset({"message", "hint", "retryable", "request_id", "attempts", "run"})


def code_of(kind: type[FMError]) -> str:
    """As "data_error" for `DataError`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def problem_of(error: FMError, request_id: str = "") -> Problem:
    """`error` as it travels."""
    kind = type(error)
    status = next(STATUS_OF[base] for base in kind.__mro__ if base in STATUS_OF)
    fields = {name: value for name, value in vars(error).items() if name not in _CARRIED}
    if isinstance(error, DataError):
        fields["faults"] = [asdict(fault) for fault in error.faults]
    return Problem(
        title=kind.__name__, status=status, code=code_of(kind), detail=error.message, hint=error.hint,
        retryable=error.retryable, request_id=request_id, fields=fields,
    )


def error_of(problem: Problem) -> FMError:
    """The error that became `problem`. A newer server's unknown one is of the class that its status stands for."""
    kinds = {code_of(kind): kind for kind in _tree(FMError)}
    kind = kinds.get(problem.code) or _kind_of(problem.status)
    fields = dict(problem.fields)
    if issubclass(kind, DataError):
        fields["faults"] = tuple(DataFault(**fault) for fault in fields.get("faults", ()))
    error = kind.__new__(kind, problem.detail)
    error.args = (problem.detail,)
    defaults = vars(kind("", extra="") if issubclass(kind, errors.MissingExtra) else kind(""))
    error.__dict__ = {
        **defaults, **{name: value for name, value in fields.items() if name in defaults}, "message": problem.detail,
        "hint": problem.hint, "retryable": problem.retryable, "request_id": problem.request_id,
    }
    return error


def _kind_of(status: int) -> type[FMError]:
    if status >= 500:
        return errors.Unavailable
    exact = [kind for kind, its in STATUS_OF.items() if its == status]
    return exact[0] if exact else errors.RequestError


def _tree(root: type[FMError]) -> list[type[FMError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]
