"""Pieces of a step side by side, each by a thread of its own.

Threads that share one operation wait for each other at its end, and what is no large matrix product (norms, rotary
positions, Python itself) leaves all but one idle. Threads that compute a piece each meet once in a step. What it gives
on a CPU is in docs/performance.md; a GPU has one queue, and gains nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from threading import Barrier
from typing import TypeVar

import torch
from accelerate import Accelerator

from fm_local.trainer import device
from fm_local.trainer.batching import unlabelled
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.methods import Trainee

_MOST = 4
"""Beyond, pieces would become too small: all that are computed at once share one bound of tokens."""
_AHEAD = 2
"""Items begun at once, for each lane: the next one waits where one is slow, and few results wait to be taken."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Lanes:
    """`count` threads that share the processor's cores evenly. One lane is the calling thread, with all cores."""

    def __init__(self, count: int) -> None:
        self.count = count
        if count == 1:
            return
        threads = torch.get_num_threads()
        together = Barrier(count)

        def begin() -> None:
            torch.get_num_threads()  # a new thread's first operation would take over what counts for all
            torch.set_num_threads(max(1, threads // count))  # counts for the calling thread
            together.wait()

        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        wait([self._pool.submit(begin) for _ in range(count)])
        torch.set_num_threads(threads)  # and for the threads to come

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result]:
        """Results in the order of `items`, whichever is done first: what is added up in that order has the same bits
        every time. Modes of a thread, as `no_grad`, are for `function` to set.

        Raises what `function` raises first, once no thread is at work any more.
        """
        if self.count == 1:
            yield from map(function, items)
            return
        left = iter(items)
        begun = deque(self._pool.submit(function, item) for item in islice(left, _AHEAD * self.count))
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(self._pool.submit(function, item) for item in islice(left, 1))
                yield result
        finally:
            for future in begun:
                future.cancel()
            wait(begun)


def open_lanes(loss: TokenLoss, trainee: Trainee, accelerator: Accelerator) -> Lanes:
    """As many lanes as this process has use for: one on a GPU or beside other processes, and where the model draws
    random numbers while it trains, which several threads would draw in another order each time, or changes itself."""
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    if not alone or moves_weights(trainee) or _draws_random_numbers(loss):
        return Lanes(1)
    trained = sum(parameter.numel() for parameter in trainee.trainable.values())
    fitting = device.WAITING_GRADIENT_BYTES // (_AHEAD * 4 * trained)
    return Lanes(max(1, min(torch.get_num_threads(), fitting, _MOST)))


def moves_weights(trainee: Trainee) -> bool:
    """Whether PEFT puts adapted weights in the place of others for the time of a forward pass, as it does with those
    of experts, which lie in one tensor."""
    return trainee.peft_model is not None and bool(trainee.peft_model.peft_config["default"].target_parameters)


@torch.no_grad()
def _draws_random_numbers(loss: TokenLoss) -> bool:
    """Whether the model, as it trains, has dropout or the like. Found by trying: configurations name it variously."""
    ids = torch.arange(8) % loss.language_model.config.get_text_config().vocab_size
    before = torch.get_rng_state()
    loss.logits(unlabelled(ids[None]))
    return not torch.equal(before, torch.get_rng_state())
