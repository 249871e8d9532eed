"""The public verbs. Each asks a backend; which one, `fm.context` says.

Where they differ from the reference (`databricks.model_training.foundation_model` 1.1.8), and why:

============================  ==========================================================================================
`register_to` optional        a run need not end in the registry
`learning_rate` None          its default 5e-7 is for all weights; with LoRA, the default here, it teaches nothing
`eval_prompts` any sequence   nothing is lost by taking a tuple
`Run.events()` a method       it can follow, and page; so is `metrics()`, which the reference has not
`include_details` True        the details cost nothing here; the parameter is accepted for scripts
`list(limit=None)`            all runs; the reference has no way to ask for them
no `training_durations=[…]`   a sweep is a loop over `create`: one more type would save its caller one line
============================  ==========================================================================================
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from fm.backends.base import PAGE_LIMIT, Backend, RunFilter
from fm.context import current
from fm.duration import Duration
from fm.errors import Conflict, RequestError
from fm.lifecycle import Status
from fm.request import LoraConfig, TaskType
from fm.run import Run
from fm.tables import RunList
from fm.types import Checkpoint, Event, RunRecord
from fm.when import parse_moment

if TYPE_CHECKING:
    from fm.creation import DryRun
    from fm.models import AvailableModel, TunedModel

P = ParamSpec("P")
R = TypeVar("R")
Moment = datetime | date | str


def create(
    model: str | Path,
    train_data_path: str | Path,
    register_to: str | None = None,
    *,
    experiment_path: str = "",
    task_type: str | TaskType = TaskType.CHAT_COMPLETION,
    eval_data_path: str | Path | None = None,
    eval_prompts: Sequence[str] | None = None,
    custom_weights_path: str | Path | Checkpoint | None = None,
    training_duration: str | Duration = "1ep",
    learning_rate: float | str | None = None,
    context_length: int | None = None,
    validate_inputs: bool = True,
    data_prep_cluster_id: str | None = None,
    method: Literal["lora", "full", "qlora"] = "lora",
    lora: LoraConfig | Mapping[str, Any] | None = None,
    batch_size: int = 16,
    seed: int = 17,
    optimizer: Literal["adamw", "adafactor"] = "adamw",
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear",
    warmup: float = 0.02,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    packing: Literal["auto"] | bool = "auto",
    train_on: Literal["last", "all"] = "last",
    eval_interval: str | Duration = "auto",
    save_interval: str | Duration = "auto",
    keep_checkpoints: int = 2,
    trackers: str | Sequence[str] = (),
    num_processes: int = 1,
    sharding: str | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    duration: str | Duration | None = None,
    lr: float | str | None = None,
    idempotency_key: str | None = None,
    dry_run: bool = False,
    backend: str | Backend | None = None,
    launcher: str | None = None,
) -> Run:
    """Fine-tunes a model: checks the request and the data, stores the run as QUEUED, and returns at once.

    The first thirteen parameters are the reference's, in its order and with its meanings.

    Args:
        model: a folder ("./my-model"), a registered model ("catalog.schema.model", with "@alias" or "/3"), a preset
            ("fm/tiny-llama"), or a hub name ("org/name"); looked for in this order.
        train_data_path: a file or folder of .jsonl, .json, .csv, .parquet or .txt, or a hub data set.
        register_to: "catalog.schema" (the model then takes the run's name) or "catalog.schema.model". None: the
            weights stay in the run's folder.
        experiment_path: groups runs, for trackers and `fm.list(experiment_id=...)`; empty: each run is its own.
        task_type: what the rows are: CHAT_COMPLETION, INSTRUCTION_FINETUNE or CONTINUED_PRETRAIN.
        eval_data_path: held-out data in the same format.
        eval_prompts: texts that are completed at each evaluation, and logged.
        custom_weights_path: start from these safetensors (a file, a folder, or one of `fm.get_checkpoints`) of
            `model`'s architecture.
        training_duration: "3ep" (epochs), "500ba" (optimiser steps), "1_000_000tok" (tokens), or a time to be done
            in, such as "45m" or "1h30m".
        learning_rate: the peak. None: one that fits the method and the model's size. A given one is used unchanged,
            with a `RequestWarning` when it lies far outside what is known to work.
        context_length: longer rows are cut to this many tokens. None: the model's.
        validate_inputs: read and check every row before the run is stored. The data's digest is taken in any case.
        data_prep_cluster_id: accepted with a warning, and ignored: there is no cluster that prepares data.
        method: "lora" trains an adapter, "full" all weights. "qlora" is refused so far.
        lora: the adapter's shape: rank 16, alpha 32, all linear layers.
        batch_size: examples per optimiser step, over all processes.
        seed: of the shuffling, of new weights and of dropout. The same request gives the same weights.
        optimizer: "adamw" or "adafactor".
        lr_scheduler: how the rate falls from its peak: "linear" or "cosine" to 0, or "constant".
        warmup: share of the training over which the rate climbs to its peak.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradients are clipped to this norm.
        precision: "auto" is bf16 where the machine has it.
        packing: "auto" packs where that changes no result; False never does. True is refused so far.
        train_on: of a chat, train the "last" assistant turn or "all".
        eval_interval: a duration; "auto" is ten times over the training. The end is always evaluated.
        save_interval: a duration between checkpoints; "auto" is ten times over the training.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        trackers: any of "mlflow", "wandb", "tensorboard".
        num_processes: training processes on this machine; data-parallel.
        sharding: refused so far.
        name: the run's name; need not be unique. None: made from the model's.
        tags: free key-value pairs, kept with the run.
        duration: short for `training_duration`.
        lr: short for `learning_rate`.
        idempotency_key: calls with the same key make one run. None: one for each call, kept over crashes.
        dry_run: check everything, write nothing, and return an `fm.DryRun` instead of a run.
        backend: where the run is kept; see `fm.backend`. None: the chosen one, else FM_BACKEND, else "local".
        launcher: what starts the training process. None: the backend's own.

    Raises:
        RequestError: a parameter is wrong; says which, and what to write instead.
        DataError: the data is wrong; lists up to 20 faults with file, line, field and remedy.
        NotFound: there is no such model.
        Unsupported, MissingExtra, Unavailable: it can't be done with this version, installation or machine.
    """
    given = dict(locals())
    from fm.creation import prepare, submit

    where = current(backend)
    plan = prepare(given, where)
    if dry_run:
        return cast(Run, plan)  # typed as a run, which it is in all but dry runs; `validate` has the exact type
    return Run(where, submit(plan, where, idempotency_key=idempotency_key))


def _same_parameters(model: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Gives a function the signature of another one, for editors, type checkers and `inspect`."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        own = inspect.signature(function)
        same = inspect.signature(model).replace(return_annotation=own.return_annotation)
        function.__signature__ = same  # type: ignore[attr-defined]
        return cast("Callable[P, R]", function)

    return decorate


@_same_parameters(create)
def validate(*args: Any, **parameters: Any) -> DryRun:
    """Makes every check that `create` makes with the same parameters, and writes nothing.

    Returns:
        What a run would be made from: the request, the resolved model, rows, bytes and digest of the data, warnings.

    Raises:
        What `create` raises.
    """
    return cast("DryRun", create(*args, **{**parameters, "dry_run": True}))


def get(run: str | Run, *, backend: str | Backend | None = None) -> Run:
    """The run of that id, of the beginning of an id that no other has, or the latest of that name, as it is now.

    Raises:
        NotFound: there is none.
    """
    if isinstance(run, Run):
        return run.refresh()
    where = current(backend)
    return Run(where, where.runs.get(run))


def list(
    training_runs: str | Run | Iterable[str | Run] | None = None,
    experiment_id: str | None = None,
    *,
    statuses: str | Status | Iterable[str | Status] | None = None,
    user_emails: str | Iterable[str] | None = None,
    before: Moment | None = None,
    after: Moment | None = None,
    include_details: bool = True,
    limit: int | None = 100,
    backend: str | Backend | None = None,
) -> RunList:
    """The runs that fit all conditions, newest first.

    Args:
        training_runs: runs, names (also globs, as "qa-*") or beginnings of ids.
        experiment_id: only runs of this experiment.
        statuses: only runs in one of these.
        user_emails: only runs that one of these users created.
        before: only runs created before this moment: a `datetime`, a `date`, ISO text, or "2h" (ago).
        after: only runs created at or after this moment.
        include_details: accepted for scripts; the details are always there.
        limit: at most so many; None for all.

    Raises:
        RequestError: a status or a moment is none.
    """
    del include_details
    where = current(backend)
    wanted = RunFilter(
        statuses=frozenset(_status(status) for status in _several(statuses)),
        owners=frozenset(_several(user_emails)),
        before=parse_moment(before, field="before") if before is not None else None,
        after=parse_moment(after, field="after") if after is not None else None,
        experiment_id=experiment_id,
        limit=PAGE_LIMIT,
    )
    if training_runs is None:
        records = _pages(where, wanted, limit)
    else:
        names = [run.id if isinstance(run, Run) else run for run in _several(training_runs)]
        found = {record.id: record for name in names for record in _pages(where, replace(wanted, name=name), limit)}
        records = sorted(found.values(), key=lambda record: (record.created_at, record.id), reverse=True)[:limit]
    return RunList(Run(where, record) for record in records)


def cancel(
    runs: str | Run | Iterable[str | Run] | None = None,
    experiment_id: str | None = None,
    *,
    reason: str = "",
    backend: str | Backend | None = None,
) -> int:
    """Cancels runs, or all those of an experiment. Returns how many; those that had ended are passed over.

    Raises:
        NotFound: there is no run of one of these names.
        RequestError: neither runs nor an experiment are named.
    """
    if runs is None and experiment_id is None:
        raise RequestError("cancel which runs?", field="runs", hint="pass runs, or experiment_id")
    chosen = [get(run, backend=backend) for run in _several(runs)]
    if experiment_id is not None:
        chosen += list(experiment_id=experiment_id, limit=None, backend=backend)
    return sum(_cancel_if_live(run, reason) for run in dict.fromkeys(chosen))


@overload
def get_events(run: str | Run, follow: Literal[False] = False) -> builtins.list[Event]: ...
@overload
def get_events(run: str | Run, follow: Literal[True]) -> Iterator[Event]: ...
def get_events(run: str | Run, follow: bool = False) -> builtins.list[Event] | Iterator[Event]:
    """The run's events so far, oldest first; with `follow` an iterator over those to come too, until it has ended."""
    handle = get(run)
    return handle.events(follow=True) if follow else handle.get_events()


def get_checkpoints(run: str | Run) -> builtins.list[Checkpoint]:
    """The run's whole checkpoints, oldest first. Each can be passed on as `custom_weights_path`."""
    return get(run).checkpoints()


def get_models(*, backend: str | Backend | None = None) -> builtins.list[AvailableModel]:
    """What `model=` can name without a download: presets, registered models, and the local Hugging Face cache."""
    from fm.models import available_models

    return available_models(current(backend))


@overload
def wait(  # type: ignore[overload-overlap]  # a text is an iterable of texts too, but here it is one name
    run: str | Run, timeout: float | None = None, raise_on_failure: bool = True
) -> Run: ...
@overload
def wait(run: Iterable[str | Run], timeout: float | None = None, raise_on_failure: bool = True) -> RunList: ...
def wait(
    run: str | Run | Iterable[str | Run], timeout: float | None = None, raise_on_failure: bool = True
) -> Run | RunList:
    """Waits until the run, or each of several, has ended; `timeout` is in seconds, for all of them together.

    Raises:
        RunFailed, RunStopped: how one ended, once all have; not with `raise_on_failure=False`.
        WaitTimeout: the time is up; the runs go on.
    """
    import time

    from fm.follow import raise_for_status

    if isinstance(run, (str, Run)):
        return get(run).wait(timeout, raise_on_failure)
    deadline = None if timeout is None else time.monotonic() + timeout
    runs = RunList(get(each) for each in run)
    for each in runs:
        each.wait(None if deadline is None else max(0.0, deadline - time.monotonic()), raise_on_failure=False)
    for each in runs if raise_on_failure else ():
        raise_for_status(each)
    return runs


def delete(run: str | Run, *, backend: str | Backend | None = None) -> None:
    """Removes an ended run with its folder. A model that it registered stays.

    Raises:
        Conflict: the run has not ended.
    """
    handle = get(run, backend=backend)
    handle.backend.runs.delete(handle.id)


def rerun(run: str | Run, *, backend: str | Backend | None = None) -> Run:
    """Makes the same run again from its record alone: the same request, the same version of the model, the same data.

    Raises:
        DataChanged: the data is not what it was.
    """
    from fm.creation import prepare_again, submit

    handle = get(run, backend=backend)
    return Run(handle.backend, submit(prepare_again(handle.record, handle.backend), handle.backend))


def load(
    model: str | Path | Run, *, device: str = "auto", backend: str | Backend | None = None
) -> TunedModel:
    """Opens a model to be used: ``fm.load("catalog.schema.model").chat([...])``.

    Args:
        model: a registered model, a folder, a hub name, or a run that has registered one.
        device: "auto" (the best there is), "cpu", "cuda" or "mps".

    Raises:
        NotFound: there is no such model, or the run has registered none.
        MissingExtra: torch and its companions are not installed.
    """
    from fm.models import open_for_use

    return open_for_use(model, device=device, backend=current(backend))


@overload
def _several(values: str | Iterable[str] | None) -> builtins.list[str]: ...
@overload
def _several(values: str | Run | Iterable[str | Run] | None) -> builtins.list[str | Run]: ...
def _several(values: Any) -> Any:
    """`values` as a list; one run or one text is a list of one."""
    if values is None:
        return []
    return [values] if isinstance(values, (str, Run)) else [*values]


def _status(status: str | Status) -> Status:
    known = Status.from_string(status)
    if known is Status.UNKNOWN and status.upper() != Status.UNKNOWN:
        raise RequestError(
            f"there is no status {status!r}", field="statuses", hint=f"one of {', '.join(Status.__members__)}"
        )
    return known


def _pages(where: Backend, wanted: RunFilter, limit: int | None) -> builtins.list[RunRecord]:
    """All that fits, or the first `limit`, page by page."""
    records: builtins.list[RunRecord] = []
    while limit is None or len(records) < limit:
        size = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - len(records))
        page = where.runs.list(replace(wanted, limit=size, cursor=records[-1].id if records else None))
        records += page
        if len(page) < size:
            break
    return records


def _cancel_if_live(run: Run, reason: str) -> bool:
    if run.status.is_terminal():
        return False
    try:
        run.cancel(reason)
    except Conflict:  # it ended between the question and the order
        return False
    return True
