"""One training step on fake tensors: the shapes and lifetimes of all that it computes, without weights or arithmetic.

A few layers are traced and the rest extrapolated, since every layer of a language model costs the same: what is
measured at two depths is a straight line in the number of layers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fm.errors import Unsupported
from fm_local.plan.watching import LiveBytes, Operations, count_saved
from fm_local.trainer.adapters import add_adapter
from fm_local.trainer.batching import MicroBatch
from fm_local.trainer.loss import TokenLoss

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_BY_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type")
"""Lists in configurations that say something of every layer."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Bytes and counts of one micro-batch, for one depth or extrapolated to it. Peaks leave out parameters."""

    parameters: float
    """Parameters of the base."""
    linear: float
    """Those in linear layers other than the head: what QLoRA quantises."""
    layer: float
    """Those of one decoder layer: what sharding gathers at a time."""
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
    """How a micro-batch is computed. The defaults are the trainer's own for LoRA without autocast."""

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
    eager: bool = False
    """Attention as written-out matrix products instead of a fused kernel."""
    labels: float = 1.0
    """Share of the positions that carry a label."""
    accumulating: bool = False
    """Whether gradients of an earlier micro-batch are there already; they are then left out of the peaks."""
    gradients_kept: bool = True
    """False where the optimiser steps inside the backward pass and drops each gradient."""
    loss: Callable[[Any], nn.Module] | None = None
    """Makes the module that is trained out of the language model; None for the trainer's `TokenLoss`."""


def trace(config: Any, step: Step) -> Traced:
    """What a forward and backward pass costs for all layers of `config`, a transformers configuration.

    Raises:
        Unsupported: a model that can't be traced.
    """
    depth = layers_of(config)
    depths = sorted({min(2, depth), min(4, depth)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that transformers changes; nothing for its users
        found = [_trace_at(_of_depth(config, layers), step) for layers in depths]
    if len(found) == 1:
        return found[0]
    low, high = map(asdict, found)
    slope = (depth - depths[0]) / (depths[1] - depths[0])
    return Traced(**{name: low[name] + slope * (high[name] - low[name]) for name in low})


def layers_of(config: Any) -> int:
    """The configuration's number of decoder layers.

    Raises:
        Unsupported: it does not say.
    """
    text = config.get_text_config()
    for name in _LAYER_COUNTS:
        if isinstance(count := getattr(text, name, None), int):
            return count
    raise Unsupported(
        f"the configuration of a {text.model_type} does not name its number of layers", field="model",
        hint="it can be trained, but not planned for",
    )


def build_meta(config: Any, dtype: torch.dtype) -> Any:
    """The causal language model of `config`, without storage.

    Raises:
        Unsupported: transformers has no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise Unsupported(f"no causal language model can be built: {error}", field="model") from None


def _trace_at(config: Any, step: Step) -> Traced:
    model = build_meta(config, step.dtype)
    base = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    linear = [m.weight.numel() for m in model.modules() if _is_linear(m) and m is not head]
    layer = sum(p.numel() for p in _decoder_layers(model)[0].parameters())
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if step.eager:
        model.set_attn_implementation("eager")
    if step.lora is not None:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are none of a plan's business
            add_adapter(model, step.lora, token_ids=[], seed=0)
    model.train()
    with FakeTensorMode(), _one_document_a_row():
        _make_fake(model, step.trained_dtype if step.lora else step.dtype)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if step.accumulating:
            for parameter in trainable:
                parameter.grad = torch.empty_like(parameter)
        if not step.gradients_kept:
            for parameter in trainable:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        batch = _batch(step)
        # Without the cache, in which the second of two passes would find the first one's copies of the weights.
        with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast, cache_enabled=False):
            trainee = step.loss(model) if step.loss else TokenLoss(model, head_apart=_head_is_apart(model))
        live = LiveBytes(config.get_text_config().vocab_size)
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
                saved, saved_logits, result = count_saved(trainee, lambda: trainee(batch), live.vocabulary)
            loss = result[0]
            del result
            forward = live.most(0)
            begin = len(live.series)
            loss.backward()
    middle = (begin + len(live.series)) // 2
    casts = sum(2 * p.numel() for p in trainable if p.dim() == 2 and p.dtype is torch.float32) * step.autocast
    text = config.get_text_config()
    return Traced(
        parameters=base,
        linear=sum(linear),
        layer=layer,
        active=_active(model, head, text),
        width=text.hidden_size,
        vocabulary_size=text.vocab_size,
        largest=max(linear),
        trained=sum(p.numel() for p in trainable),
        saved=saved,
        saved_logits=saved_logits,
        casts=casts,
        casts_kept=0.0 if step.checkpointing else casts,
        **dict(zip(("forward", "forward_logits"), forward, strict=True)),
        **dict(zip(("late", "late_logits"), live.most(begin, middle), strict=True)),
        **dict(zip(("early", "early_logits"), live.most(middle), strict=True)),
    )


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
def _head_is_apart(model: Any) -> bool:
    """What `TokenLoss` finds by comparing values, found by comparing operations: there are no values here."""
    ids = torch.zeros((1, 8), dtype=torch.int64)
    whole, parts = Operations(), Operations()
    with whole:
        model(input_ids=ids, use_cache=False)
    with parts:
        model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return model.base_model is not model and whole.counts == parts.counts


def _batch(step: Step) -> MicroBatch:
    count = max(1, round(step.rows * step.width * step.labels))
    ids = torch.zeros((step.rows, step.width), dtype=torch.int64)
    return MicroBatch(ids, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64))


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _of_depth(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name in _LAYER_COUNTS:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, layers)
    for name in _BY_LAYER:
        if isinstance(kinds := getattr(text, name, None), list):
            setattr(text, name, kinds[:layers])
    config.use_cache = False
    return config


def _decoder_layers(model: Any) -> Any:
    """The decoder's layers: the module list with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda found: sum(p.numel() for p in found.parameters()))


def _active(model: nn.Module, head: nn.Module | None, config: Any) -> float:
    """Parameters of matrix products before the head that a token passes."""
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if _is_linear(module) and module is not head and ".experts." not in f"{name}."
    )
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    active: float = linear + experts * min(1.0, (getattr(config, "num_experts_per_tok", None) or count) / count)
    return active


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear layer


def _make_fake(model: nn.Module, trained_dtype: torch.dtype) -> None:
    """Gives all meta parameters and buffers fake storage on the CPU; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    trained = parameter.requires_grad
                    dtype = trained_dtype if trained else parameter.dtype
                    made[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=trained)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
