"""Pieces of a step side by side, each by a thread of its own.

Threads that share one operation wait for each other at its end, and what is no large matrix product (norms, rotary
positions, Python itself) leaves all but one idle. Threads that compute a piece each meet once in a step. What it gives
on a CPU is in docs/performance.md; a GPU has one queue, and gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import TypeVar

import torch
from accelerate import Accelerator

from fm_local.trainer.batching import lay_in_row
from fm_local.trainer.loss import TokenLoss

_MOST = 4
"""Beyond, pieces would become too small: all that are computed at once share one bound of tokens."""
_MOST_GRADIENT_BYTES = 256 << 20
"""What the gradients that wait to be added up may take: each lane makes its own."""

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
            torch.set_num_threads(max(1, threads // count))  # counts for the calling thread
            together.wait()

        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        wait([self._pool.submit(begin) for _ in range(count)])
        torch.set_num_threads(threads)  # and for the threads to come

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Results in the order of `items`, whichever is done first: what is added up in that order has the same bits
        every time. Modes of a thread, as `no_grad`, are for `function` to set.

        Raises what `function` raises first, once no thread is at work any more.
        """
        if self.count == 1:
            yield from map(function, items)
            return
        futures = [self._pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def open_lanes(loss: TokenLoss, trained_parameters: int, accelerator: Accelerator) -> Lanes:
    """As many lanes as this process has use for: one on a GPU or beside other processes, and where the model draws
    random numbers while it trains, which several threads would draw in another order each time."""
    if accelerator.device.type != "cpu" or accelerator.num_processes > 1 or _draws_random_numbers(loss):
        return Lanes(1)
    fitting = _MOST_GRADIENT_BYTES // (4 * max(1, trained_parameters))
    return Lanes(max(1, min(torch.get_num_threads(), fitting, _MOST)))


@torch.no_grad()
def _draws_random_numbers(loss: TokenLoss) -> bool:
    """Whether the model, as it trains, has dropout or the like. Found by trying: configurations name it variously."""
    ids = torch.arange(8) % loss.language_model.config.get_text_config().vocab_size
    before = torch.get_rng_state()
    loss.logits(lay_in_row([ids.numpy()]))
    return not torch.equal(before, torch.get_rng_state())
