"""Texts to tokens: in batches through the Rust tokenizer, which uses all cores, while Python renders and writes.

A token is trained if it holds a trained character. So where a token straddles the beginning of an answer, it is
trained: it is where the tokens of the prompt alone and of the whole part (trap 16 of the tests).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fm.types import TaskType
from fm_local.models.tokenizer import added_ids, stop_token_ids
from fm_local.prepare.rendering import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16
"""Characters from which on a document is cut for the tokenizer, between lines: it works on several pieces at once, and
holds some 150 bytes for each token of a piece."""

Tokens = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]
"""Ids, and for each 1 if it is trained."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one rendered example: one row of tokens; several for a long document; none if dropped."""

    rows: list[Tokens]
    truncated: bool = False


class Encoder:
    """Encodes rendered examples for one task.

    Args:
        template: of a chat; None otherwise.
        context_length: tokens of the longest row.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, task_type: TaskType, *, template: str | None, context_length: int
    ) -> None:
        self._rust = tokenizer.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()
        self._task_type = task_type
        self._length = context_length
        self._eos = int(tokenizer.eos_token_id)
        self._stops = frozenset(stop_token_ids(tokenizer, template))
        # A chat's template writes the beginning of sequence itself.
        before = [] if task_type is TaskType.CHAT_COMPLETION else added_ids(tokenizer)[0]
        self._before = np.array(before, np.uint32)

    def encode(self, batch: list[Rendered]) -> list[Any]:
        """The tokenizer's own encodings, one list for each example. Runs outside the interpreter's lock."""
        if self._task_type is TaskType.CONTINUED_PRETRAIN:
            cuts = [_cut(item.text) for item in batch]
            texts = [text for cut in cuts for text in cut]
            encodings = iter(self._rust.encode_batch_fast(texts, add_special_tokens=False))
            return [[next(encodings) for _ in cut] for cut in cuts]
        return [[one] for one in self._rust.encode_batch([item.text for item in batch], add_special_tokens=False)]

    def finish(self, item: Rendered, encodings: list[Any]) -> Encoded:
        """Tokens and mask of one example, framed, and cut to the context length."""
        if self._task_type is TaskType.CONTINUED_PRETRAIN:
            return self._document(encodings)
        ids = np.array(encodings[0].ids, np.uint32)
        mask = np.zeros(len(ids), np.uint8)
        for start, end in item.trained:
            mask[slice(*_tokens_of(encodings[0], start, end, len(item.text)))] = 1
        # Behind the last trained token there is nothing to learn.
        last = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
        ids, mask = ids[:last], mask[:last]
        if last and int(ids[-1]) not in self._stops:
            ids, mask = np.append(ids, np.uint32(self._eos)), np.append(mask, np.uint8(1))
        if len(self._before):
            ids = np.concatenate([self._before, ids])
            mask = np.concatenate([np.zeros(len(self._before), np.uint8), mask])
        truncated = len(ids) > self._length
        ids, mask = ids[: self._length], mask[: self._length]
        return Encoded([(ids, mask)] if mask[1:].any() else [], truncated)

    def _document(self, encodings: list[Any]) -> Encoded:
        parts = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        ids = np.concatenate([self._before, *parts, np.array([self._eos], np.uint32)])
        # Equal parts, since a last one of a single token would have nothing to train.
        rows = np.array_split(ids, -(-len(ids) // self._length))
        return Encoded([(row, np.ones(len(row), np.uint8)) for row in rows if len(row) > 1])


def _tokens_of(encoding: Any, start: int, end: int, length: int) -> tuple[int, int]:
    """First token that holds a character of ``start … end``, and the one behind the last."""
    first = next((token for at in range(start, end) if (token := encoding.char_to_token(at)) is not None), 0)
    behind = next((token for at in range(end, length) if (token := encoding.char_to_token(at)) is not None), None)
    if behind is None:
        return first, len(encoding)
    return first, behind + (encoding.token_to_chars(behind)[0] < end)


def _cut(text: str) -> list[str]:
    """`text` in pieces of about `PIECE` characters, cut before a line's end where there is one."""
    pieces = []
    begin = 0
    while len(text) - begin > 2 * PIECE:
        end = text.find("\n", begin + PIECE, begin + 2 * PIECE)
        end = end if end > 0 else begin + PIECE
        pieces.append(text[begin:end])
        begin = end
    return [*pieces, text[begin:]]


def encode_all(
    encoder: Encoder, batches: Iterable[tuple[list[T], list[Rendered]]]
) -> Iterator[tuple[list[T], list[Encoded]]]:
    """Encodes batches of (labels, texts) in order. Reading and rendering, encoding, and the caller's writing overlap,
    with a few batches between them in memory."""
    with _ahead(batches) as incoming, ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        waiting: list[tuple[list[T], list[Rendered], Any]] = []
        for labels, items in incoming:
            waiting.append((labels, items, pool.submit(encoder.encode, items)))
            if len(waiting) > 2:
                yield _finish(encoder, *waiting.pop(0))
        while waiting:
            yield _finish(encoder, *waiting.pop(0))


def _finish(encoder: Encoder, labels: list[T], items: list[Rendered], future: Any) -> tuple[list[T], list[Encoded]]:
    encodings = future.result()
    return labels, [encoder.finish(item, encoding) for item, encoding in zip(items, encodings, strict=True)]


class _ahead(Iterator[T]):  # noqa: N801 — used like a function
    """Iterates over `items` in a thread of its own, two items ahead. Its errors are raised here."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._queue: Queue[tuple[T | None, BaseException | None]] = Queue(2)
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="read", daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __next__(self) -> T:
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # handed to the thread that waits for it
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put((item, error), timeout=0.2)
                return True
            except Full:
                continue
        return False
