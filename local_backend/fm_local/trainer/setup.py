"""Everything that a training needs before its first step: data, tokenizer, model, optimiser, learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fm.errors import Unsupported
from fm.job import Job
from fm.layout import Storage
from fm.lifecycle import EventType
from fm.request import TrainRequest
from fm_local.models.tokenizer import chat_template_of, load_tokenizer, stop_token_ids
from fm_local.prepare.shards import TokenDataset
from fm_local.trainer import device
from fm_local.trainer.copies import StepCopies
from fm_local.trainer.lanes import Lanes, moves_weights, open_lanes
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.methods import Trainee, prepare_model
from fm_local.trainer.optimizer import Optimizer, TorchOptimizer, make_optimizer
from fm_local.trainer.packing import choose_packing
from fm_local.trainer.parts import shape_of
from fm_local.trainer.rates import default_rate, rate_warning
from fm_local.trainer.reach import refuse_unreached_adapters
from fm_local.trainer.report import Report
from fm_local.trainer.sharding import gathered_outside_layers, shard
from fm_local.trainer.short_attention import attend_by_products
from fm_local.trainer.zero import open_engine, part_weights


@dataclass(frozen=True, slots=True)
class Training:
    """What stays the same from the first step to the last."""

    data: TokenDataset
    held_out: TokenDataset | None
    tokenizer: Any
    template: str
    stop_tokens: Sequence[int]
    trainee: Trainee
    loss: TokenLoss
    """Model and loss as one module."""
    model: Any
    """The same as it is called: wrapped by DDP, or by DeepSpeed, where several processes hold it so."""
    sharded: bool
    """Whether each process holds a part of something; all then have to compute the same number of pieces."""
    packed: bool
    """Whether a step's examples are packed into rows; else those of similar length are padded."""
    lanes: Lanes
    """What computes a step's pieces."""
    copies: StepCopies
    """With what they compute it side by side."""
    optimizer: Optimizer
    peak_rate: float
    trained_parameters: int
    same: dict[str, Any]
    """What a checkpoint must agree in for this training to go on from it."""


def bytes_to_load(job: Job) -> int:
    """Size of all weights that are read before the first step. Every checkpoint may be, if the newest are damaged."""
    prepared = job.prepared or {}
    places = [prepared.get("model_path"), prepared.get("base_path"), job.request.custom_weights_path, *job.resume_from]
    files = (file for place in places if place for file in Path(place).rglob("*.safetensors"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _hold(
    loss: TokenLoss, trainee: Trainee, request: TrainRequest, accelerator: Accelerator
) -> tuple[Trainee, Any, Optimizer]:
    """Lets each process hold what `request.sharding` says. Returns `trainee` with the parameters that are held, what is
    called instead of `loss`, and the optimiser.

    Raises:
        MissingExtra: DeepSpeed is not installed.
        Unsupported: it can't hold this model.
    """
    if request.sharding in ("full", "full-offload"):
        trainee = shard(loss, trainee, accelerator, offload=request.sharding == "full-offload")
    elif request.sharding == "zero3":
        if moves_weights(trainee):
            raise Unsupported(
                "adapters on this model's experts put weights in the place of others, which DeepSpeed can't follow",
                field="sharding",
                hint='use sharding="zero2"',
            )
        part_weights(loss, accelerator.device)
    model = accelerator.prepare_model(loss, evaluation_mode=request.sharding != "none")  # else it would put DDP around
    optimizer = make_optimizer(request.optimizer, trainee.trainable, request.weight_decay)
    if request.sharding in ("zero2", "zero3"):
        return trainee, *open_engine(loss, optimizer, trainee.trainable, stage=int(request.sharding[-1]))
    return trainee, model, TorchOptimizer(optimizer, trainee.trainable)


def make_ready(job: Job, accelerator: Accelerator, report: Report, *, checkpointing: bool = False) -> Training:
    """Loads what `job` names, and reports it. `checkpointing`: see `prepare_model`.

    Raises:
        FMError: something is missing, damaged, or doesn't fit.
    """
    request, prepared = job.request, job.prepared or {}
    shards = Storage(Path(job.storage_root))
    data = TokenDataset.open(shards.shard(prepared["train"]["shard"]))
    held_out = TokenDataset.open(shards.shard(prepared["eval"]["shard"])) if prepared.get("eval") else None
    tokenizer = load_tokenizer(Path(prepared["tokenizer"]))
    template = chat_template_of(tokenizer)
    report.event(
        EventType.DATA_VALIDATED,
        f"{len(data):,} examples, {int(data.lengths.sum()):,} tokens",
        counts=prepared.get("counts"),
        eval_counts=prepared.get("eval_counts"),
    )

    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    trainee = prepare_model(
        job, tokenizer, precision=precision, device=accelerator.device, checkpointing=checkpointing
    )
    loss = TokenLoss(
        trainee.language_model, head_apart=False, rows_at_once=device.rows_of_logits(accelerator.device)
    )
    trainee, model, optimizer = _hold(loss, trainee, request, accelerator)
    with accelerator.autocast():
        loss.look_at_head()
        with gathered_outside_layers(loss):
            refuse_unreached_adapters(loss, trainee.trainable, accelerator.device)
            if device.prefers_plain_attention(accelerator.device, precision, data.lengths.mean(), data.lengths.max()):
                attend_by_products(loss, accelerator.device)
            packed = choose_packing(loss, request.packing, accelerator.device, report)
    trained_parameters = sum(shape_of(parameter).numel() for parameter in trainee.trainable.values())
    with accelerator.autocast():
        lanes = open_lanes(loss, trainee, accelerator)
    loss.callers = lanes.count
    usual_rate = default_rate(request.method, trainee.parameters, random_weights=trainee.random_weights)
    peak_rate = request.learning_rate or usual_rate
    report.event(
        EventType.MODEL_INITIALIZED,
        f"{job.model.name}: {trainee.parameters:,} parameters on {accelerator.device} in {precision}",
        parameters=trainee.parameters,
        trainable=trained_parameters,
        device=str(accelerator.device),
        precision=precision,
        attention=trainee.language_model.config._attn_implementation,
        sharding=request.sharding,
        packed=packed,
        checkpointing=trainee.checkpointing,
        learning_rate=peak_rate,
        usual_rate=usual_rate,
        processes=accelerator.num_processes,
        threads=torch.get_num_threads(),
        lanes=lanes.count,
        versions=device.versions(),
    )
    if warning := rate_warning(peak_rate, request.method, usual_rate, random_weights=trainee.random_weights):
        report.event(EventType.WARNING, warning, field="learning_rate")
    return Training(
        data=data,
        held_out=held_out,
        tokenizer=tokenizer,
        template=template,
        stop_tokens=stop_token_ids(tokenizer, template),
        trainee=trainee,
        loss=loss,
        model=model,
        sharded=request.sharding != "none",
        packed=packed,
        lanes=lanes,
        copies=StepCopies(trainee.language_model if precision == "bf16" and trainee.peft_model is None else None),
        optimizer=optimizer,
        peak_rate=peak_rate,
        trained_parameters=trained_parameters,
        same={
            "seed": request.seed,
            "batch_size": request.batch_size,
            "method": request.method,
            "optimizer": request.optimizer,
            "training data": prepared["train"]["shard"],
        },
    )
