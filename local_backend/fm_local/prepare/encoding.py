"""Texts to tokens: in batches through the Rust tokenizer, which uses all cores, while Python renders and writes.

A token is trained if it holds a trained character. So where a token straddles the beginning of an answer, it is
trained: it is where the tokens of the prompt alone and of the whole part (trap 16 of the tests).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fm.request import TaskType
from fm_local.models.tokenizer import added_ids, stop_token_ids
from fm_local.prepare.offsets import ByteWidths, bounds_by_offsets
from fm_local.prepare.rendering import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16
"""Characters from which on a document is cut for the tokenizer, between lines: it works on several pieces at once, and
holds some 150 bytes for each token of a piece."""
AT_ONCE = 16 * PIECE
"""Characters of texts that the tokenizer is given at once."""

Tokens = tuple[npt.NDArray[np.uint32], bytes]
"""Ids, and for each a byte that is 1 if it is trained."""
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
        self._is_text = task_type is TaskType.CONTINUED_PRETRAIN
        self._widths = None if self._is_text else ByteWidths.of(tokenizer)
        self._length = context_length
        self._eos = int(tokenizer.eos_token_id)
        self._stops = frozenset(stop_token_ids(tokenizer, template))
        # A chat's template writes the beginning of sequence itself.
        self._before = [] if task_type is TaskType.CHAT_COMPLETION else added_ids(tokenizer)[0]

    def encode(self, batch: list[Rendered]) -> list[Any]:
        """For each example the tokenizer's own encoding; of a text, its ids. Runs outside the interpreter's lock."""
        if self._is_text:
            return self._encode_texts([item.text for item in batch])
        encode = self._rust.encode_batch_fast if self._widths else self._rust.encode_batch
        return list(encode([item.text for item in batch], add_special_tokens=False))

    def _encode_texts(self, texts: list[str]) -> list[array[int]]:
        documents = [array("I", self._before) for _ in texts]
        pieces = [(document, piece) for document, text in zip(documents, texts, strict=True) for piece in _cut(text)]
        # What the tokenizer gives is some 40 times as large as its ids: only those of a few large pieces exist at once.
        many = max(1, len(pieces) * AT_ONCE // max(AT_ONCE, sum(map(len, texts))))
        for begin in range(0, len(pieces), many):
            group = pieces[begin : begin + many]
            encodings = self._rust.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
            for (document, _), encoding in zip(group, encodings, strict=True):
                document.extend(encoding.ids)
        return documents

    def finish(self, item: Rendered, encoded: Any) -> Encoded:
        """Tokens and mask of one example, framed, and cut to the context length."""
        if self._is_text:
            return self._document(encoded)
        # Lists and bytes where arrays are not needed: for a short example, each operation of numpy's counts.
        ids = encoded.ids
        spans = self._widths.bounds(item, np.frombuffer(array("I", ids), np.uint32)) if self._widths else None
        if spans is None:
            # Without offsets in hand, the text is encoded once more.
            exact = self._rust.encode(item.text, add_special_tokens=False) if self._widths else encoded
            spans = bounds_by_offsets(item, exact)
        # Behind the last trained token there is nothing to learn.
        last = spans[-1][1]
        ids = ids[:last]
        mask = bytearray(last)
        for begin, behind in spans:
            mask[begin:behind] = b"\1" * (behind - begin)
        if ids[-1] not in self._stops:
            ids.append(self._eos)
            mask.append(1)
        if self._before:
            ids = self._before + ids
            mask = bytearray(len(self._before)) + mask
        truncated = len(ids) > self._length
        if truncated:
            ids, mask = ids[: self._length], mask[: self._length]
        # The first token has nothing that predicts it.
        rows = [(np.frombuffer(array("I", ids), np.uint32), bytes(mask))] if mask.count(1, 1) else []
        return Encoded(rows, truncated)

    def _document(self, whole: array[int]) -> Encoded:
        whole.append(self._eos)
        ids = np.frombuffer(whole, np.uint32)
        # Equal parts, since a last one of a single token would have nothing to train.
        rows = np.array_split(ids, -(-len(ids) // self._length))
        return Encoded([(row, b"\1" * len(row)) for row in rows if len(row) > 1])


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
