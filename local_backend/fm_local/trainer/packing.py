"""Which examples share a row, and whether the model keeps them apart there.

Packing changes how a step's examples lie in memory and nothing else: a step still has its `batch_size` examples, none
is cut, and the gradient is the same. So steps, schedule and epochs are those of a training without it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import numpy as np
import torch

from fm.errors import Unsupported
from fm.lifecycle import EventType
from fm_local.trainer.attention import DENSE, candidates
from fm_local.trainer.batching import Indices, lay_in_row, spread
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.report import Report
from fm_local.trainer.sharding import try_backward

_PROBE_TOKENS = 16
_LEAK = 1e-3
"""How much of what a neighbour does within one document may be seen across documents, relative. Documents that are kept
apart gave exactly 0 in fp32 and in bf16; a convolution in a model of small random weights, seen through bf16, 0.007."""
_SHIFT = 0.05
"""How far a document's logits may differ between a packed row and a row of its own, relative: bf16 rounds by 0.01."""


def best_fit(sizes: Indices, capacity: int) -> list[list[int]]:
    """Bins of items whose sizes sum to `capacity` at most; an item that is larger has a bin to itself.

    Best-fit decreasing: from the largest on, each goes where it leaves the least space; at most 11/9 of the fewest bins
    (Johnson 1974). The bins are kept sorted by their space, so each place is found by bisection.
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        at = bisect_left(spaces, (size, -1))
        if at == len(spaces):
            space, number = capacity, len(bins)
            bins.append([])
        else:
            space, number = spaces.pop(at)
        bins[number].append(item)
        if space > size:
            insort(spaces, (space - size, number))
    return bins


def pack(examples: Indices, lengths: Indices, max_tokens: int) -> list[Indices]:
    """`examples` in groups of `max_tokens` tokens at most (or one example), each of which makes one row."""
    return [examples[chosen] for chosen in best_fit(lengths[examples] - 1, max_tokens)]


def pack_side_by_side(examples: Indices, lengths: Indices, lanes: int, max_tokens: int) -> list[Indices]:
    """`examples` in rows of about one length, as many in each round as there are `lanes`: those of a round have
    `max_tokens` tokens together at most, unless each row is a single example."""
    rounds = 0
    while True:
        rounds += 1
        rows = [row for row in spread(examples, lengths, rounds * lanes) if len(row)]
        longest = sorted(int(lengths[row].sum()) for row in rows)[-lanes:]
        if sum(longest) <= max_tokens or len(rows) == len(examples):
            return rows


def choose_packing(loss: TokenLoss, wish: str | bool, device: torch.device, report: Report) -> bool:
    """Whether the training packs; if so, the model is left with the attention that keeps documents apart.

    That it does is measured and not assumed: which models carry something from one document to the next, and
    which kernels work on this machine, no list knows. "auto" packs where an attention that skips other documents is at
    hand: where a dense mask is needed, padded rows of similar length are quicker.

    Raises:
        Unsupported: `wish` is True, and no attention of this machine keeps this model's documents apart.
    """
    if wish is False or (wish == "auto" and device.type not in ("cpu", "cuda")):
        return False
    model = loss.language_model
    before = model.config._attn_implementation
    reasons = []
    for name in candidates(device, before):
        if wish == "auto" and name in DENSE:
            continue
        try:
            if name != before:
                model.set_attn_implementation(name)
            reason = why_not_isolated(loss, device)
        except Exception as error:  # whatever a kernel says to a model that it was not made for
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if reason is None:
            return True
        reasons.append(f"{name}: {reason}")
    model.set_attn_implementation(before)
    why = "; ".join(reasons) or "no attention for packed rows is at hand"
    kind = model.config.get_text_config().model_type
    if wish is True:
        raise Unsupported(
            f"examples of this {kind} model would see each other in a packed row ({why})",
            field="packing",
            hint='leave it at packing="auto", which pads rows of similar length instead',
        )
    report.event(
        EventType.WARNING,
        f"packing is left out for this {kind} model, and rows of similar length are padded instead ({why})",
        field="packing",
    )
    return False


def why_not_isolated(loss: TokenLoss, device: torch.device) -> str | None:
    """None if the model, as it attends now, keeps packed documents apart; else what was seen.

    Two documents are packed, and the first is replaced: the second's logits must stay, whereas they would change
    if both were one document. They must also be those that it has in a row of its own, and the backward pass must run.
    """
    model = loss.language_model
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    # Another length before it, and so other absolute places.
    documents = [torch.randint(vocabulary, (_PROBE_TOKENS + n,), generator=generator) for n in (3, 3, 0)]
    first, other, second = (ids.numpy() for ids in documents)

    def logits_of_second(rows: list[Any]) -> torch.Tensor:
        batch = lay_in_row(rows).to(device)
        return loss.logits(batch)[0, -len(second) :].detach().float()

    was_training = model.training
    try:
        model.train()
        # First, since DeepSpeed lets go of what this has gathered once it is passed through without a gradient.
        value = loss.logits(lay_in_row([first, second]).to(device)).float().square().mean()
        # The way to the first trained parameter leads through all layers.
        try_backward(loss, value, [next(p for p in loss.parameters() if p.requires_grad)])
        model.eval()
        with torch.no_grad():
            packed, replaced = logits_of_second([first, second]), logits_of_second([other, second])
            alone = logits_of_second([second])
            joined, rejoined = (logits_of_second([np.concatenate([x, second])]) for x in (first, other))
    finally:
        model.train(was_training)
    leak, influence = _difference(packed, replaced), _difference(joined, rejoined)
    if not leak <= _LEAK * influence:
        return f"replacing a document changes its neighbour's logits by {leak:.2g} of their size"
    if not (shift := _difference(packed, alone)) <= _SHIFT:
        return f"a document's logits differ by {shift:.2g} of their size from those in a row of its own"
    return None


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest over all tokens, relative to the logits' size."""
    return float(((one - other).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-12)).max())
