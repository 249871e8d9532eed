"""From what was traced to the bytes of one process, for a method and a sharding."""

from __future__ import annotations

from dataclasses import dataclass

from fm.plans import Memory
from fm.request import WHOLE_WEIGHTS, Method, Sharding
from fm_local.plan.tracing import Traced
from fm_local.trainer.zero import BUCKET

NF4_BITS = 4.127
"""A parameter's bits in 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314, section 3): 4, and 8/64 +
32/(64·256) for the scales of blocks of 64 and the scales of those."""
GATHERED_LAYERS = 2
"""Layers that are whole at a time when they are sharded: the one computed and the one fetched meanwhile."""


@dataclass(frozen=True, slots=True)
class Constants:
    """What no trace shows. Fitted by `benchmarks/plan_accuracy.py` on half of the published figures."""

    framework: int = 256 << 20
    """Bytes of the libraries' workspaces on a GPU."""
    fragmentation: float = 0.51
    """What a GPU's allocator takes in addition, as a share of what comes and goes in each step."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Bytes for each parameter."""

    frozen: float
    """Of weights that are not trained; where they are quantised, of those that can't be."""
    trained: float = 4.0
    gradient: float = 4.0
    optimizer: float = 8.0
    """AdamW's two moments in fp32."""
    compute: float = 2.0
    """Of a weight in the format that is computed in, which is what sharding gathers."""


def memory_of(
    traced: Traced,
    method: Method,
    sharding: Sharding,
    numbers: Numbers,
    *,
    devices: int = 1,
    accumulating: bool,
    framework: int,
    fragmentation: float,
) -> Memory:
    """The most that one of `devices` holds.

    Args:
        framework, fragmentation: as in `Constants`.
        accumulating: as in the trace's `Step`: gradients are there through the whole of the pass.
    """
    share = 1.0 if sharding == "none" else 0.0 if sharding == "full-offload" else 1.0 / devices
    zero, parted = sharding in ("zero2", "zero3"), sharding not in WHOLE_WEIGHTS
    frozen_bits = NF4_BITS / 8 if method == "qlora" else numbers.frozen
    adapter = 0.0 if method == "full" else traced.trained
    if method == "full":
        weights = traced.parameters * numbers.trained
    else:
        rest = traced.parameters - traced.linear
        weights = traced.linear * frozen_bits + rest * numbers.frozen + adapter * numbers.trained
    gradients = traced.trained * numbers.gradient * share
    # DeepSpeed steps a copy of the trained weights.
    optimizer = traced.trained * (numbers.optimizer + (numbers.trained if zero else 0.0)) * share

    gathered = 0.0
    activations = traced.saved - traced.saved_logits
    # FSDP2 gathers in the format that is computed in, ZeRO 3 in that which is kept.
    whole_number = numbers.compute if not zero else numbers.trained if method == "full" else numbers.frozen
    if parted:
        per_parameter = frozen_bits if method == "qlora" else whole_number
        outside = max(0.0, traced.parameters - traced.in_layers)
        gathered = min(GATHERED_LAYERS, traced.layers) * traced.layer * per_parameter + outside * whole_number
        if method == "full":
            # A layer's gradient is whole until it is reduced.
            gathered += traced.layer * numbers.gradient
            if not zero:
                # Computing copies are what was gathered, and go with it.
                activations -= min(activations, traced.casts_kept)
    if zero:
        gathered += 4 * BUCKET  # in which DeepSpeed sums gradients, as fp32
    dequantised = traced.largest * numbers.compute if method == "qlora" else 0.0

    # Sharded, no device holds all that the trace shows: copies and gradients of weights are shared out.
    shared_out = parted and not zero and method == "full"
    cast, kept_casts = (traced.casts, traced.casts_kept) if shared_out else (0.0, 0.0)
    made = 0.0 if accumulating else min(traced.trained * numbers.gradient, traced.early)
    phases = [
        (max(0.0, traced.forward - cast), traced.forward_logits, 0.0),
        (max(0.0, traced.late - kept_casts), traced.late_logits, 0.0),
        (traced.early - made, traced.early_logits, made * share),
    ]
    peak, logits, own = max(phases, key=lambda phase: phase[0] + phase[2])
    held = gradients if accumulating else own
    kept = min(activations, max(0.0, peak - max(0.0, logits)))
    logits = min(max(0.0, logits), peak - kept)
    memory = {
        "weights": weights * (share if parted else 1.0),
        "gradients": held,
        "optimizer": optimizer,
        "activations": kept,
        "logits": logits,
        "temporary": peak - kept - logits + gathered + dequantised,
        "framework": float(framework),
    }
    whole = Memory(**{name: round(size) for name, size in memory.items()}, reserved=0)
    return whole.model_copy(update={"reserved": whole.allocated + round(fragmentation * whole.passing)})
