"""Cross-entropy summed over the labelled tokens only, in fp32, never holding all logits at once.

A sum and not a mean: the loop divides by the labelled tokens of the whole optimiser step, over all micro-batches and
processes, so that the gradient does not depend on how the step was cut up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows
from torch import nn

from fm_local.trainer.batching import ROW_TOKENS, MicroBatch

_LOGITS_AT_ONCE = 1 << 26
"""Elements of the largest block of logits, unless `ROW_TOKENS` rows have more: 256 MiB in fp32."""


class TokenLoss(nn.Module):
    """A causal language model together with its loss, as one module: what DDP wraps and autocast covers.

    `forward(batch)` gives two scalars: the summed cross-entropy (nats, fp32) and the count of right top-1 predictions.
    """

    def __init__(
        self, language_model: Any, *, head_apart: bool | None = None, rows_at_once: int | None = None,
        blocks: int | None = None,
    ) -> None:
        """`head_apart`: whether head(backbone(ids)) are the model's logits. None: found by trying it. `rows_at_once`:
        of logits, at most, unless the head is trained and wider: adding a block's gradient to a trained head's costs as
        much as so many rows. None: as many as `_LOGITS_AT_ONCE` holds. `blocks` of them are computed, and the rest
        is passed over: for who wants no loss, but to know what it costs."""
        super().__init__()
        self.language_model = language_model
        self._rows_at_once, self._most_blocks = rows_at_once, blocks
        self.callers = 1
        """Threads that call this at the same time: all their blocks of logits together have one bound."""
        self._split = _head_can_be_applied_apart(language_model) if head_apart is None else head_apart

    def look_at_head(self) -> None:
        """Finds by trying whether head(backbone(ids)) are the model's logits."""
        self._split = _head_can_be_applied_apart(self.language_model)

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._split:
            return cross_entropy(_pick(self._logits(batch), batch.positions), batch.labels)
        states = self.language_model.base_model(**batch.inputs(), use_cache=False).last_hidden_state
        hidden = _pick(states, batch.positions)
        head = self.language_model.get_output_embeddings()
        columns = self.callers * self.language_model.config.get_text_config().vocab_size
        rows = max(1, _LOGITS_AT_ONCE // columns // ROW_TOKENS) * ROW_TOKENS
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        if self._rows_at_once:
            least = max(self._rows_at_once, hidden.shape[-1] if trained else 0)
            rows = min(rows, -least // ROW_TOKENS * -ROW_TOKENS)
        if not torch.is_grad_enabled():
            return _sum(cross_entropy(head(h), y) for h, y in _blocks(rows, hidden, batch.labels))
        return _BlockwiseLoss.apply(head, rows, self._most_blocks, batch.labels, hidden, *trained)  # type: ignore[no-any-return, no-untyped-call]

    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """The model's own, (rows, length, vocabulary)."""
        return self._logits(batch)

    def _logits(self, batch: MicroBatch) -> torch.Tensor:
        logits: torch.Tensor = self.language_model(**batch.inputs(), use_cache=False).logits
        return logits


def _pick(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What `values`, (rows, length, any), hold at these `positions`: at all of them, or filled up to a
    multiple of `ROW_TOKENS`."""
    flat = values.flatten(0, 1)
    if len(positions) == len(flat):
        return flat
    return flat.index_select(0, F.pad(positions, (0, -len(positions) % ROW_TOKENS)))


class _BlockwiseLoss(torch.autograd.Function):
    """The loss of head(hidden), and its gradient in the same pass, block by block: logits are neither kept for the
    backward pass nor computed a second time in it (as in Wijmans et al., Cut Your Losses, 2024)."""

    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, rows: int, most: int | None, labels: torch.Tensor, hidden: torch.Tensor,
        *trained: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        of_hidden = torch.empty_like(hidden)
        of_trained = [torch.zeros_like(weight) for weight in trained]
        found = []
        for h, y, slot in islice(_blocks(rows, hidden, labels, of_hidden), most):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                # Not the leaf itself: of those, autocast keeps its copies up to the forward pass's end.
                loss, right = cross_entropy(head(h.view_as(h)), y)
            first, *others = torch.autograd.grad(loss, [h, *trained])
            slot.copy_(first)
            for total, part in zip(of_trained, others, strict=True):
                total += part
            found.append((loss.detach(), right))
        ctx.save_for_backward(of_hidden, *of_trained)
        loss, right = _sum(found)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, of_loss: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, None, *(gradient * of_loss for gradient in ctx.saved_tensors)


def _blocks(rows: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def _sum(found: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    losses, rights = zip(*found, strict=True)
    return torch.stack(losses).sum(), torch.stack(rights).sum()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `logits`, (rows, vocabulary), against `labels`, ids of words: the sum in nats, in fp32, and how many labels
    the logits put first. More rows than there are labels don't count."""
    return _CrossEntropy.apply(logits, labels)  # type: ignore[no-any-return, no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    """Its gradient, softmax - one-hot, is made with it. The loss is (largest logit - label's logit) - log of the
    largest probability, which can't underflow as the label's own can."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counted, places = logits[: len(labels)], labels[:, None]
        probabilities = torch.softmax(counted, -1, dtype=torch.float32)
        most, best = counted.max(-1, keepdim=True)  # on a CPU, argmax takes four times as long
        losses = most.float() - counted.gather(1, places).float() - probabilities.gather(1, best).log()
        if ctx.needs_input_grad[0]:
            probabilities.scatter_add_(1, places, probabilities.new_full(places.shape, -1.0))
            gradient = torch.empty_like(logits)
            gradient[: len(labels)], gradient[len(labels) :] = probabilities, 0.0
            ctx.save_for_backward(gradient)
        right = (best == places).sum()
        ctx.mark_non_differentiable(right)
        return losses.sum(), right

    @staticmethod
    def backward(ctx: Any, of_loss: torch.Tensor, _: None) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss, None


@torch.no_grad()
def _head_can_be_applied_apart(model: Any) -> bool:
    """Whether head(backbone(ids)) is all that the model does to get its logits. Some models scale or cap them (Gemma 2,
    Granite, Cohere); those are asked for their own logits. Found by trying, since configurations name it variously."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
        whole = model(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        apart = head(hidden)
    finally:
        model.train(was_training)
    # Some models (Mamba) hand out fp32 logits of a bf16 head.
    return whole.shape == apart.shape and torch.allclose(whole.float(), apart.float(), rtol=1e-3, atol=1e-4)
