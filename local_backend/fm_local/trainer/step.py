"""The gradients of one optimiser step, in as many pieces as the memory asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from fm_local.trainer.batching import Indices, MicroBatch, Piece, collate, collate_packed, micro_batches, pieces_of_all
from fm_local.trainer.failures import is_out_of_memory
from fm_local.trainer.packing import pack, pack_side_by_side
from fm_local.trainer.setup import Training


class Gradients(NamedTuple):
    """What a step's examples gave; the gradients themselves are in the parameters."""

    loss: float
    """Mean cross-entropy of the step's labels, in nats."""
    accuracy: float
    """Share of the labels that the model put first."""
    norm: float
    """Of the gradient, before clipping."""
    examples: list[int]
    """Those that this process computed."""


class Stepper:
    """Computes gradients, in pieces that are halved where memory runs out; the result does not depend on their size."""

    def __init__(
        self, training: Training, accelerator: Accelerator, *, max_tokens: int, beat: Callable[[], None]
    ) -> None:
        """`max_tokens`: padded tokens computed at once, unless one example alone has more. `beat` is called after each
        piece: a step may have very many."""
        self._training = training
        self._accelerator = accelerator
        self.max_tokens = max_tokens
        self._beat = beat
        self._awaited = False
        """Whether other processes, if there are any, count on what this one computes now."""

    def gradients(self, examples: Indices, step: int, *, seed: int, max_norm: float) -> Gradients:
        """Leaves the gradient of the mean loss over the labels of `examples`, clipped to `max_norm`, in the parameters.

        All random numbers of the step come from (`seed`, `step`, rank).

        Raises:
            torch.OutOfMemoryError: not even one example fits.
        """
        while True:
            cut, side_by_side = self._cut(examples)
            pieces = pieces_of_all(
                examples,
                self._training.data.lengths,
                self._accelerator.process_index,
                self._accelerator.num_processes,
                cut=cut,
                even=self._training.sharded,
            )
            self._awaited = self._training.sharded  # then all take part in each piece
            try:
                return self._accumulate(examples, pieces, side_by_side, step, seed, max_norm)
            except Exception as error:
                # What others count on can't be computed again.
                free = self._accelerator.num_processes == 1 or not self._awaited
                if not (free and is_out_of_memory(error) and max(len(piece) for piece, _ in pieces) > 1):
                    longest = int(self._training.data.lengths[examples].max())
                    error.add_note(f"step {step + 1}, whose longest example has {longest:,} tokens")
                    raise
            self._training.optimizer.zero_grad()
            if self._accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
            widest = max(len(piece) * int(self._training.data.lengths[piece].max()) for piece, _ in pieces)
            self.max_tokens = min(self.max_tokens, widest) // 2

    def _cut(self, examples: Indices) -> tuple[Callable[[Indices], list[Indices]], bool]:
        """How a share of `examples` is cut into pieces, and whether those are computed side by side: where each lane
        gets one, and all of them together stay within `max_tokens`."""
        lengths, packed, lanes = self._training.data.lengths, self._training.packed, self._training.lanes.count
        longest, most = int(lengths[examples].max()), self.max_tokens
        if lanes == 1 or len(examples) < lanes or lanes * longest > most:
            cut = pack if packed else micro_batches
            return lambda share: cut(share, lengths, most), False
        if packed:
            return lambda share: pack_side_by_side(share, lengths, lanes, most), True
        tokens = int(lengths[examples].sum())
        rounds = math.ceil(tokens / most)
        bound = max(longest, math.ceil(tokens / (rounds * lanes)))
        return lambda share: micro_batches(share, lengths, bound), True

    def _accumulate(
        self, examples: Indices, pieces: list[Piece], side_by_side: bool, step: int, seed: int, max_norm: float
    ) -> Gradients:
        training, accelerator = self._training, self._accelerator
        rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
        labels = int(training.data.trained[examples].sum())
        # Summed over the whole step, divided once by its labels; DDP and FSDP2 divide by `world`, which is undone here.
        gradients = self._side_by_side if side_by_side else self._one_by_one
        sums = torch.zeros(2, device=device)
        with closing(gradients(pieces, world / labels)) as computed:
            for loss, right in computed:
                sums += torch.stack([loss.detach(), right.float()])
                self._beat()
        sums = accelerator.reduce(sums) if world > 1 else sums
        norm = training.optimizer.clip(max_norm)
        mean, accuracy, size = torch.cat([sums / labels, norm[None].to(sums)]).tolist()
        return Gradients(mean, accuracy, size, [int(index) for piece, counts in pieces if counts for index in piece])

    def _one_by_one(self, pieces: list[Piece], scale: float) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        model, accelerator = self._training.model, self._accelerator
        for number, piece in enumerate(pieces, start=1):
            # Sharded gradients are summed over the processes with each piece: the whole would not fit, by assumption.
            with accelerator.no_sync(model) if number < len(pieces) else nullcontext():
                loss, right = model(self._load(piece))
                self._awaited |= number == len(pieces)
                accelerator.backward(loss * scale)
            yield loss, right

    def _side_by_side(self, pieces: list[Piece], scale: float) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        training, trainable = self._training, list(self._training.trainee.trainable.values())
        computed_with: list[torch.Tensor] = []

        def compute(piece: Piece) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, ...]]:
            loss, right = training.model(self._load(piece))
            return loss, right, torch.autograd.grad(loss * scale, computed_with, allow_unused=True)

        # The weights go back to their places when no lane is at work any more.
        with training.copies.lent() as copies, closing(training.lanes.map(compute, pieces)) as computed:
            computed_with += [copies.get(parameter, parameter) for parameter in trainable]
            for loss, right, parts in computed:
                for parameter, part in zip(trainable, parts, strict=True):
                    if part is None:
                        continue
                    if parameter.grad is None:
                        # Laid out as the parameter is, which the fused optimiser relies on.
                        parameter.grad = torch.empty_like(parameter).copy_(part)
                    else:
                        parameter.grad += part
                yield loss, right

    def _load(self, piece: Piece) -> MicroBatch:
        examples, counts = piece
        load = collate_packed if self._training.packed else collate
        return load(self._training.data, examples, labelled=counts).to(self._accelerator.device)
