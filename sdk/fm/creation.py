"""The one path of `validate`, `dry_run=True` and `create`: check all that can be checked, then write."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.backends.base import Backend, Machine, NewRun
from fm.display import human_bytes, plain
from fm.errors import RequestError
from fm.examine import ThisMachine
from fm.planning import make_plan
from fm.plugins import require
from fm.rates import KNOWN_RATES
from fm.request import TrainRequest, check_priority
from fm.types import DEFAULT_LAUNCHER, Checkpoint, DataRef, ModelRef, RunRecord

if TYPE_CHECKING:
    from fm.plans import Plan

_SHORT = {"duration": ("training_duration", "1ep"), "lr": ("learning_rate", None)}
_NOT_REQUEST = {
    "validate_inputs", "data_prep_cluster_id", "idempotency_key", "dry_run", "allow_oversize", "backend", "launcher",
    "priority", *_SHORT,
}


class RequestWarning(UserWarning):
    """Something in a request is accepted, but probably not what its author wants."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What `create` would store, after every check that it makes; nothing was written."""

    request: TrainRequest
    model: ModelRef
    train_data: DataRef
    eval_data: DataRef | None
    backend: str
    launcher: str
    machine: Machine = field(repr=False, compare=False)
    """Who answers for the place where it would be trained."""
    warnings: tuple[str, ...] = ()
    allow_oversize: bool = False
    priority: int = 0

    @property
    def rows(self) -> int | None:
        """Rows of training data; None where `validate_inputs=False` left them uncounted."""
        return self.train_data.rows

    @property
    def bytes(self) -> int:
        """Bytes of training data."""
        return self.train_data.bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the training data, as a run made from it will record."""
        return self.train_data.digest

    @property
    def plan(self) -> Plan:
        """What the training needs, as `fm.plan` says. Made when it is asked for: that takes seconds."""
        return make_plan(self)

    def __str__(self) -> str:
        request = self.request
        rate = "by method and size" if request.learning_rate is None else f"{request.learning_rate:g}"
        lines = [
            f"model     {self.model.name} ({self.model.kind})",
            f"data      {_describe_data(self.train_data)}",
            f"eval      {_describe_data(self.eval_data)}" if self.eval_data else "",
            f"training  {request.task_type.value}, {request.method}, {request.training_duration}, "
            f"batch {request.batch_size}, learning rate {rate}",
            f"register  {request.register_to}" if request.register_to else "",
            f"backend   {self.backend}, launcher {self.launcher}",
            *(f"warning   {warning}" for warning in self.warnings),
        ]
        return plain("\n".join(line for line in lines if line))


def prepare(given: Mapping[str, Any], backend: Backend, *, plan_only: bool = False) -> DryRun:
    """Checks the parameters of `fm.create` as far as that goes without a tokenizer. Writes nothing. With `plan_only`
    this machine need not be able to do it.

    Raises:
        RequestError, DataError, NotFound, Unavailable, MissingExtra: what is wrong, and what to write instead.
    """
    request = TrainRequest.build(_request_fields(given))
    machine = backend.machine or ThisMachine(backend)
    launcher = given["launcher"] or DEFAULT_LAUNCHER
    request, model = machine.examine(request, launcher, plan_only=plan_only)
    train_data, eval_data = _look_at_data(request, validate=given["validate_inputs"])
    doubts = _doubts(request, model, given)
    for text in doubts:
        warnings.warn(text, RequestWarning, stacklevel=_level_of_caller())
    prepared = DryRun(
        request, model, train_data, eval_data, backend.name, launcher, machine, doubts, given["allow_oversize"],
        check_priority(given["priority"]),
    )
    if not plan_only:
        machine.admit(prepared)
    return prepared


def prepare_again(record: RunRecord, backend: Backend) -> DryRun:
    """What `prepare` returned when `record` was made, if its data is still the same.

    Raises:
        DataChanged: it is not.
    """
    from fm.data import locate, verify

    if backend.trains_here:
        require("launchers", record.launcher)
    for data, parameter in ((record.train_data, "train_data_path"), (record.eval_data, "eval_data_path")):
        if data and not data.stored:  # else it lies in the file store, under its digest
            verify(locate(data.path, field=parameter), data)
    return DryRun(
        record.request, record.model, record.train_data, record.eval_data, backend.name, record.launcher,
        backend.machine or ThisMachine(backend), allow_oversize=record.allow_oversize, priority=record.priority,
    )


def submit(plan: DryRun, backend: Backend, *, idempotency_key: str | None = None) -> RunRecord:
    """Stores what was prepared as a run, exactly once even if this process is killed midway and started again."""
    from fm.caller import describe_caller
    from fm.pending import new_key, pending_key

    new = NewRun(
        request=plan.request,
        model=plan.model,
        train_data=_put(backend, plan.train_data),
        eval_data=_put(backend, plan.eval_data) if plan.eval_data else None,
        caller=describe_caller(),
        launcher=plan.launcher,
        priority=plan.priority,
        experiment_id=experiment_id(plan.request.experiment_path),
        allow_oversize=plan.allow_oversize,
    )
    if idempotency_key is not None:
        return backend.runs.create(new, idempotency_key=idempotency_key)
    if backend.pending is None:
        return backend.runs.create(new, idempotency_key=new_key())
    with pending_key(backend.pending, _digest(plan)) as key:
        return backend.runs.create(new, idempotency_key=key)


def experiment_id(path: str) -> str:
    """The id of the experiment at `path`, the same in every call; empty without a path: then each run is its own."""
    return f"exp-{hashlib.sha256(path.encode()).hexdigest()[:12]}" if path else ""


def _put(backend: Backend, data: DataRef) -> DataRef:
    return data if data.stored else backend.files.put(data.path, digest=data.digest, bytes=data.bytes, rows=data.rows)


def _digest(plan: DryRun) -> str:
    parts = [
        plan.backend, plan.launcher, plan.request.model_dump(mode="json"), plan.model.model_dump(mode="json"),
        plan.train_data.digest, plan.eval_data.digest if plan.eval_data else None,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _request_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `fm.create`'s parameters makes the request, under its full names; paths as text."""
    values = {key: value for key, value in given.items() if key not in _NOT_REQUEST}
    for short, (long, default) in _SHORT.items():
        if given[short] is not None:
            if given[long] != default:
                raise RequestError(f"{short} and {long} are the same; both are given", field=short, hint="pass one")
            values[long] = given[short]
    weights = values["custom_weights_path"]
    values["custom_weights_path"] = weights.path if isinstance(weights, Checkpoint) else weights
    # A Path is a path even where its text alone would be taken for a hub's name.
    values = {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in values.items()}
    return {key: value for key, value in values.items() if value is not None}


def _look_at_data(request: TrainRequest, *, validate: bool) -> tuple[DataRef, DataRef | None]:
    """Training and evaluation data, checked row by row, or else with their digest taken and no more."""
    from fm.data import check, digest, locate
    from fm.progress import data_progress

    def look_at(path: str, field: str) -> DataRef:
        source = locate(path, field=field)
        if not validate:
            return digest(source)
        with data_progress(source.name) as progress:
            return check(source, request.task_type, progress=progress)

    train_data = look_at(request.train_data_path, "train_data_path")
    return train_data, look_at(request.eval_data_path, "eval_data_path") if request.eval_data_path else None


def _doubts(request: TrainRequest, model: ModelRef, given: Mapping[str, Any]) -> tuple[str, ...]:
    doubts = []
    if given["data_prep_cluster_id"] is not None:
        doubts.append("data_prep_cluster_id is ignored: data is prepared on the machine that trains")
    low, high = KNOWN_RATES["random" if model.kind == "preset" else request.method]
    rate = request.learning_rate
    if rate is not None and not low <= rate <= high:
        effect = "below it teaches next to nothing" if rate < low else "above it usually diverges"
        doubts.append(
            f"learning_rate {rate:g} is used as given, but for method={request.method!r} {low:g} to {high:g} is "
            f"known to work, and {effect}; leave learning_rate out for one that fits the method and the model"
        )
    return tuple(doubts)


def _level_of_caller() -> int:
    """The `stacklevel` at which a warning of this module's functions names the line that called `fm`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("fm."):
        level, frame = level + 1, frame.f_back
    return level


def _describe_data(data: DataRef) -> str:
    rows = f"{data.rows:,} rows, " if data.rows is not None else ""
    return f"{data.path} ({rows}{human_bytes(data.bytes)}, sha256 {data.digest[:12]}…)"
