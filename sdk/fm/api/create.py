"""The verbs that make runs: create, validate, rerun."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

from fm.api.runs import get
from fm.backends.base import Backend
from fm.context import current
from fm.duration import Duration
from fm.request import LoraConfig, TaskType
from fm.run import Run
from fm.types import Checkpoint

if TYPE_CHECKING:
    from fm.creation import DryRun

P = ParamSpec("P")
R = TypeVar("R")


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
    method: Literal["lora", "qlora", "full"] = "lora",
    lora: LoraConfig | Mapping[str, Any] | None = None,
    new_tokens: Sequence[str] = (),
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
    early_stopping_patience: int | None = None,
    register_checkpoint: str = "last",
    trackers: str | Sequence[str] = (),
    num_processes: int | None = None,
    num_nodes: int = 1,
    min_processes: int | None = None,
    process_cpus: int = 1,
    process_gpus: int | None = None,
    process_memory: float | None = None,
    sharding: Literal["none", "full", "full-offload", "zero2", "zero3"] = "none",
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    duration: str | Duration | None = None,
    lr: float | str | None = None,
    priority: int = 0,
    idempotency_key: str | None = None,
    dry_run: bool = False,
    allow_oversize: bool = False,
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
        method: "lora" trains an adapter, "qlora" the same on a base held in 4 bits, "full" all weights.
        lora: the adapter's shape: rank 16, alpha 32, dropout 0, all linear layers; `use_rslora`, `use_dora`.
        new_tokens: tokens whose embeddings are trained and saved with the adapter; the tokenizer is given those that
            it lacks. With method="full" all embeddings are trained anyway.
        batch_size: examples per optimiser step, over all processes.
        seed: of the shuffling, of new weights and of dropout. The same request gives the same weights.
        optimizer: "adamw" (betas 0.9 and 0.95) or "adafactor".
        lr_scheduler: how the rate falls from its peak: "linear" or "cosine" to 0, or "constant".
        warmup: share of the training over which the rate climbs to its peak.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradients are clipped to this norm.
        precision: "auto" is bf16 where the machine has it.
        packing: "auto" packs several examples of a step into a row where the model keeps them apart at no great cost.
            True does so everywhere, or refuses a model that can't keep them apart; False never does. The gradient is
            the same in all cases.
        train_on: of a chat, train the "last" assistant turn or "all".
        eval_interval: a duration; "auto" is ten times over the training. The end is always evaluated.
        save_interval: a duration between checkpoints; "auto" is ten times over the training.
        keep_checkpoints: how many of the newest checkpoints stay on disk.
        early_stopping_patience: end the training after so many evaluations in a row without a lower loss on held-out
            data; None: never.
        register_checkpoint: the "last" weights, or those of the evaluation with the lowest loss, "best".
        trackers: any of "mlflow", "wandb", "tensorboard".
        num_processes: training processes over all nodes; data-parallel. None: one for each node.
        num_nodes: machines of a cluster, each of which gets as many of the processes (launcher "ray").
        min_processes: on a cluster that has lost nodes, start again with as few; the batch stays what it is. None:
            wait for all.
        process_cpus: processor cores that a cluster reserves for each process.
        process_gpus: GPUs that a cluster reserves for each process. None: one, where it has any.
        process_memory: GiB of memory that a cluster reserves for each process.
        sharding: what each process holds of the model: all of it ("none": DDP), or a part of weights, gradients and
            optimiser ("full": FSDP2), and that in the machine's memory instead of the GPU's ("full-offload"); by
            DeepSpeed a part of gradients and optimiser ("zero2"), or of weights too ("zero3").
        name: the run's name; need not be unique. None: made from the model's.
        tags: free key-value pairs, kept with the run.
        duration: short for `training_duration`.
        lr: short for `learning_rate`.
        priority: of the runs of your team that wait, those with the highest go first; -100 to 100. Whose turn it is
            between teams does not depend on it.
        idempotency_key: calls with the same key make one run. None: one for each call, kept over crashes.
        dry_run: check everything, write nothing, and return an `fm.DryRun` instead of a run; its `plan` is what
            `fm.plan` says.
        allow_oversize: try also what is certain not to fit the device's memory.
        backend: where the run is kept; see `fm.backend`. None: the chosen one, else FM_BACKEND, else "local".
        launcher: what starts the training processes: "process" on this machine, "ray" on the cluster that
            FM_RAY_ADDRESS names. None: "process".

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


def same_parameters(model: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Gives a function the signature of another one, for editors, type checkers and `inspect`."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        own = inspect.signature(function)
        same = inspect.signature(model).replace(return_annotation=own.return_annotation)
        function.__signature__ = same  # type: ignore[attr-defined]
        return cast("Callable[P, R]", function)

    return decorate


@same_parameters(create)
def validate(*args: Any, **parameters: Any) -> DryRun:
    """Makes every check that `create` makes with the same parameters, and writes nothing.

    Returns:
        What a run would be made from: the request, the resolved model, rows, bytes and digest of the data, warnings.

    Raises:
        What `create` raises.
    """
    return cast("DryRun", create(*args, **{**parameters, "dry_run": True}))


def rerun(run: str | Run, *, backend: str | Backend | None = None) -> Run:
    """Makes the same run again from its record alone: the same request, the same version of the model, the same data.

    Raises:
        DataChanged: the data is not what it was.
    """
    from fm.creation import prepare_again, submit

    handle = get(run, backend=backend)
    return Run(handle.backend, submit(prepare_again(handle.record, handle.backend), handle.backend))
