"""One training step on fake tensors: the shapes and lifetimes of all that it computes, without weights or arithmetic.

A few layers are traced and the rest extrapolated, since all layers of one kind cost the same: what is measured at two
depths is a straight line in the number of layers. Where kinds are mixed (attention and state spaces, dense layers and
experts), each is traced by itself and counted as often as it occurs.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fm.errors import FMError, Unsupported
from fm_local.plan.counting import count_parameters
from fm_local.plan.layers import DecoderLayers, build_meta, make_fake
from fm_local.plan.watching import GroupedProducts, LiveBytes, Operations, count_saved
from fm_local.trainer.adapters import add_adapter
from fm_local.trainer.batching import MicroBatch
from fm_local.trainer.copies import share_inputs
from fm_local.trainer.fused_norm import fuse_norms
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.short_attention import SHORT

DEPTHS = (2, 3)
"""Layers of one kind that are traced: two points of a straight line. A single layer would be first and last at once."""
_MOST_DEPTH = max(DEPTHS)
_BLOCKS = 2
"""Of a row's logits that are traced. After the second there is all that the last one finds; a long row has hundreds."""
_SHORT = 8
"""Tokens of a row on which a model is tried."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Bytes and counts of one micro-batch, for one depth or extrapolated to it. Peaks leave out parameters."""

    parameters: float
    """Parameters of the base."""
    linear: float
    """Those in linear layers other than the head: what QLoRA quantises."""
    layers: float
    """Decoder layers."""
    in_layers: float
    """Parameters of all of them."""
    layer: float
    """Parameters of the largest decoder layer: what sharding gathers at a time."""
    active: float
    """Those of matrix products before the head that a token passes: of experts, the chosen ones only."""
    width: float
    vocabulary_size: float
    largest: float
    """Those of the largest linear layer other than the head."""
    trained: float
    """Parameters that are trained, an adapter's included."""
    saved: float
    """Bytes kept for the backward pass at the end of the forward pass."""
    saved_logits: float
    """Those of them with an element for each word of the vocabulary."""
    casts: float
    """Copies of trained weights in the computing format, which autocast makes until the forward pass ends."""
    casts_kept: float
    """Those of them that the backward pass finds still there."""
    forward: float
    """Most bytes alive at once up to the loss, of which `forward_logits` are logits."""
    forward_logits: float
    late: float
    """The same in the half of the backward pass that holds the head and the last layers."""
    late_logits: float
    early: float
    """The same in the half that holds the first layers; new gradients are among them."""
    early_logits: float


@dataclass(frozen=True, slots=True)
class Step:
    """How a micro-batch is computed. The defaults are the trainer's own for LoRA without autocast.

    `trained_dtype`, `gradients_kept`, `fused` and `loss`, and a step that is not `accumulating`, are there for
    `benchmarks/plan_accuracy.py`, which predicts what other trainers need.
    """

    rows: int
    width: int
    """Tokens of each row."""
    lora: Any | None = None
    """The request's `LoraConfig`; None trains all weights."""
    dtype: torch.dtype = torch.float32
    """Of frozen weights; of all weights without `lora`."""
    trained_dtype: torch.dtype = torch.float32
    """Of an adapter's weights."""
    autocast: bool = False
    """Whether bf16 autocast covers the forward pass."""
    checkpointing: bool = False
    """Whether layers are computed again in the backward pass."""
    by_products: bool = False
    """Attention as written-out matrix products instead of a fused kernel."""
    shares_inputs: bool = False
    """Whether layers with the same input share its copy in autocast's number format, where all weights are trained."""
    rows_of_logits: int | None = None
    """Made at once, at most."""
    labels: float = 1.0
    """Share of the positions that carry a label."""
    accumulating: bool = False
    """Whether gradients of an earlier micro-batch are there already; they are then left out of the peaks."""
    gradients_kept: bool = True
    """False where the optimiser steps inside the backward pass and drops each gradient."""
    fused: bool = True
    """Whether norms and adapters are computed by the trainer's own operations, or as transformers and PEFT do."""
    loss: Callable[[Any], nn.Module] | None = None
    """Makes the module that is trained out of the language model; None for the trainer's `TokenLoss`."""


def trace(config: Any, step: Step) -> Traced:
    """What a forward and backward pass costs for all layers of `config`, a transformers configuration.

    Raises:
        RequestError: the adapter's target modules are not in the model.
        Unsupported: a model that can't be traced.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of changes in transformers, of layouts in PEFT: nothing for its users
            return _trace(config, step)
    except FMError:
        raise
    except Exception as error:  # whatever a family's code says to tensors without values
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise Unsupported(
            f"a step of a {config.get_text_config().model_type} can't be traced ({reason})", field="model",
            hint="it can be trained, but not planned for",
        ) from error


def _trace(config: Any, step: Step) -> Traced:
    model = build_meta(config, step.dtype)
    counts = count_parameters(model)
    layers = DecoderLayers(model)
    kinds = layers.kinds()
    whole = len(layers.all) <= _MOST_DEPTH
    if not whole:
        layers.multiply([kind[0] for kind in kinds for _ in range(_MOST_DEPTH)])
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if step.lora is not None:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            add_adapter(model, step.lora, token_ids=[], seed=0, fused=step.fused)
    elif step.shares_inputs:
        share_inputs(model)
    if step.fused:
        fuse_norms(model)
    model.train()
    experts = any(p.dim() > 2 for p in model.parameters())  # what is multiplied in groups has three dimensions
    grouped = GroupedProducts() if experts else nullcontext()  # type: ignore[no-untyped-call]
    with FakeTensorMode(), grouped, _one_document_a_row():
        make_fake(model, step.trained_dtype if step.lora else step.dtype)
        for parameter in model.parameters():
            if parameter.requires_grad and not step.gradients_kept:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        if step.by_products:
            _attend_by_products(model)
        if whole:
            return Traced(**counts, **_measure(model, step, *_look_at_head(model)))
        fixed: dict[str, float] = {}
        sums: dict[str, float] = defaultdict(float)
        for number, kind in enumerate(kinds):
            first = _MOST_DEPTH * number
            layers.put([first])
            head = _look_at_head(model)
            found = []
            for depth in DEPTHS:
                layers.put(range(first, first + depth))
                found.append(_measure(model, step, *head))
            low, high = found
            for name in low:
                slope = (high[name] - low[name]) / (DEPTHS[1] - DEPTHS[0])
                sums[name] += slope * len(kind)
                fixed[name] = max(fixed.get(name, 0.0), high[name] - _MOST_DEPTH * slope)
    return Traced(**counts, **{name: fixed[name] + sums[name] for name in fixed})


@torch.no_grad()
def _attend_by_products(model: Any) -> None:
    """As the trainer does, but for the comparison of values, of which there are none."""
    model.set_attn_implementation(SHORT)
    try:
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except ValueError:
        model.set_attn_implementation("eager")


def _measure(model: Any, step: Step, head_apart: bool, loops: bool) -> dict[str, float]:
    """One pass of `model`, as deep as it is now. Where it goes from token to token (state spaces without their own
    kernels), short rows are traced instead of long ones, and what they cost extrapolated in a straight line."""
    if not loops or step.width <= 2 * _SHORT:
        return _pass(model, step, head_apart)
    low, high = (_pass(model, replace(step, width=width), head_apart) for width in (_SHORT, 2 * _SHORT))
    return {name: low[name] + (high[name] - low[name]) * (step.width / _SHORT - 1) for name in low}


def _pass(model: Any, step: Step, head_apart: bool) -> dict[str, float]:
    """One forward and backward pass of `model`, as deep as it is now."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.grad = torch.empty_like(parameter) if step.accumulating else None
    batch = _batch(step)
    # Without the cache, in which the second of two passes would find the first one's copies of the weights.
    with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast, cache_enabled=False):
        trainee = step.loss(model) if step.loss else TokenLoss(
            model, head_apart=head_apart, rows_at_once=step.rows_of_logits, blocks=_BLOCKS
        )
    live = LiveBytes(model.config.get_text_config().vocab_size)

    def forward_pass() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):  # whose copies of weights go when it ends
            return trainee(batch)

    with live:
        saved, saved_logits, result = count_saved(trainee, forward_pass, live.vocabulary)
        loss = result[0]
        del result
        forward = live.most(0)
        begin = len(live.series)
        loss.backward()
    middle = (begin + len(live.series)) // 2
    casts = float(step.autocast) * sum(2 * p.numel() for p in trainable if p.dim() == 2 and p.dtype is torch.float32)
    return {
        "trained": sum(p.numel() for p in trainable),
        "saved": saved,
        "saved_logits": saved_logits,
        "casts": casts,
        "casts_kept": 0.0 if step.checkpointing else casts,
        **dict(zip(("forward", "forward_logits"), forward, strict=True)),
        **dict(zip(("late", "late_logits"), live.most(begin, middle), strict=True)),
        **dict(zip(("early", "early_logits"), live.most(middle), strict=True)),
    }


@contextmanager
def _one_document_a_row() -> Iterator[None]:
    """transformers looks at position ids for packed documents, and where it can't see values it builds a mask in case
    there are some. The trainer's rows hold one each, and so get no mask."""
    from transformers import masking_utils

    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


@torch.no_grad()
def _look_at_head(model: Any) -> tuple[bool, bool]:
    """Whether the head can be applied apart, and whether longer rows take more operations.

    The first is what `TokenLoss` finds by comparing values, found by comparing operations: there are no values here.
    """
    ids, twice = (torch.zeros((1, width), dtype=torch.int64) for width in (_SHORT, 2 * _SHORT))
    whole, parts, longer = Operations(), Operations(), Operations()
    with whole:
        model(input_ids=ids, use_cache=False)
    with longer:
        model(input_ids=twice, use_cache=False)
    with parts:
        model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    loops = longer.counts.total() >= whole.counts.total() + _SHORT
    return model.base_model is not model and whole.counts == parts.counts, loops


def _batch(step: Step) -> MicroBatch:
    count = max(1, round(step.rows * step.width * step.labels))
    ids = torch.zeros((step.rows, step.width), dtype=torch.int64)
    return MicroBatch(ids, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64))


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
