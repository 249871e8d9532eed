"""What only the place where trainings run can say of a request: is its model there, can it be trained, would it fit.

`ThisMachine` answers for this process's own; a remote backend asks its server, where the same code answers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fm.backends.base import Backend
from fm.display import human_bytes
from fm.errors import DiskFull, MissingExtra, RequestError, Unsupported
from fm.heap import importing
from fm.planning import parameters_of, refuse_oversize
from fm.plugins import find, load, missing_from, require
from fm.request import TrainRequest
from fm.resolve import context_length_of, refuse_quantised, resolve_model
from fm.types import CLUSTER_LAUNCHER, DEFAULT_LAUNCHER, DataRef, ModelRef

if TYPE_CHECKING:
    from fm.creation import DryRun
    from fm.plans import Plan, PlanTask

_LEAST_FREE = 64 << 20
"""Bytes for logs, metrics, tokenised data and an adapter, whatever else is written."""


class ThisMachine:
    """Answers for the machine of this process, on whose behalf `backend` keeps runs. See `fm.backends.base.Machine`.

    With `own_paths` off, a model is never a folder: so a server answers those whose folders are not its own.
    """

    def __init__(self, backend: Backend, *, own_paths: bool = True) -> None:
        self._backend = backend
        self._own_paths = own_paths

    def examine(
        self, request: TrainRequest, launcher: str, *, plan_only: bool = False
    ) -> tuple[TrainRequest, ModelRef]:
        model = resolve_model(request.model, self._backend, folders=self._own_paths)
        if not plan_only:
            _check_method(request, model)
        refuse_quantised(model)
        _check_context_length(request, model)
        find("launchers", launcher)
        if launcher == DEFAULT_LAUNCHER and not plan_only:
            _refuse_what_only_a_cluster_does(request)
        if self._backend.trains_here and not plan_only:
            require("launchers", launcher)
            if launcher == DEFAULT_LAUNCHER:
                _check_extras(request)
        if request.custom_weights_path:
            request = request.model_copy(update={"custom_weights_path": _find_weights(request.custom_weights_path)})
        return request, model

    def admit(self, prepared: DryRun) -> None:
        if not self._backend.trains_here:
            return
        if self._backend.storage:
            _check_disk(self._backend.storage.root, prepared.request, prepared.model, prepared.train_data)
        if prepared.launcher == DEFAULT_LAUNCHER and not prepared.allow_oversize:
            refuse_oversize(prepared)
        elif prepared.launcher == CLUSTER_LAUNCHER:
            load("parts", "admit_to_ray")(prepared.request, allow_oversize=prepared.allow_oversize)

    def plan(self, task: PlanTask) -> Plan:
        make_plan = load("parts", "make_plan")
        with importing():  # PEFT, the first time; and what tracing leaves is soon gone
            return cast("Plan", make_plan(task))


def _check_method(request: TrainRequest, model: ModelRef) -> None:
    if model.kind == "preset" and request.method != "full":
        raise RequestError(
            f"{model.name} has random weights, on which an adapter has nothing to build",
            field="method",
            hint='train it with method="full"; LoRA then suits the model that comes out',
        )
    if request.method == "qlora" and request.custom_weights_path:
        raise RequestError(
            "custom_weights_path can't be combined with method='qlora', which quantises weights while it reads them",
            field="custom_weights_path",
            hint="put the weights into a folder with their config.json and tokenizer, and pass that as model",
        )


def _refuse_what_only_a_cluster_does(request: TrainRequest) -> None:
    for field in ("num_nodes", "min_processes", "process_cpus", "process_gpus", "process_memory"):
        if getattr(request, field) != TrainRequest.model_fields[field].default:
            raise Unsupported(
                f"{field} is for a cluster, and launcher 'process' starts processes on one machine",
                field=field,
                hint="pass launcher='ray', with FM_RAY_ADDRESS set to a Ray cluster, or leave it out",
            )


def _check_context_length(request: TrainRequest, model: ModelRef) -> None:
    most = context_length_of(model)
    if most and request.context_length and request.context_length > most:
        raise RequestError(
            f"context_length {request.context_length} is more than the {most} of {model.name}",
            field="context_length",
            hint=f"pass at most {most}: it truncates, and can't extend a model",
        )


def _check_extras(request: TrainRequest) -> None:
    if request.method == "qlora" and missing_from("qlora"):
        raise MissingExtra("method='qlora' needs bitsandbytes, not installed here", extra="qlora")
    if request.sharding in ("zero2", "zero3") and missing_from("deepspeed"):
        raise MissingExtra(f"sharding={request.sharding!r} needs deepspeed, not installed here", extra="deepspeed")
    if missing := tuple(tracker for tracker in request.trackers if tracker in missing_from("track")):
        raise MissingExtra(f"trackers: {', '.join(missing)} not installed here", extra="track")


def _find_weights(text: str) -> str:
    """The absolute path of `custom_weights_path`, if safetensors lie there."""
    path, field = Path(text).expanduser().absolute(), "custom_weights_path"
    if not path.exists():
        raise RequestError(f"{field} {path} does not exist", field=field, hint="fm.get_checkpoints(run) lists some")
    if not any(path.rglob("*.safetensors")) if path.is_dir() else path.suffix != ".safetensors":
        raise RequestError(f"{field} {path} holds no *.safetensors", field=field, hint="pass a folder that does")
    return str(path)


def _check_disk(root: Path, request: TrainRequest, model: ModelRef, data: DataRef) -> None:
    """Refuses what would fill the disk: the checkpoints that are kept, the result, and the tokenised data."""
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
    needed = _LEAST_FREE + 2 * data.bytes
    if request.method == "full":
        # Weights in fp32 and two moments for each checkpoint; one more is whole before the oldest goes.
        needed += (3 * (request.keep_checkpoints + 1) + 1) * 4 * (parameters_of(model) or 0)
    if needed > free:
        raise DiskFull(
            f"this run needs about {human_bytes(needed)} in {root}, where {human_bytes(free)} are free",
            hint="free some space (`ftctl gc` helps), set FM_RUNS to another disk, or lower keep_checkpoints",
        )
