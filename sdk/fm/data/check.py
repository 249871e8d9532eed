"""One pass over the data: every row is checked, and the digest is taken of the very bytes that were checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fm.data.rules import Example, example_of, find_faults, fits, recognise
from fm.data.source import Source, feed_file
from fm.errors import DataChanged, DataError, DataFault
from fm.request import TaskType
from fm.types import DataRef
from fm.uploads import Digester

FAULT_LIMIT = 20
Progress = Callable[[int, int], None]


class _Digester:
    """The digest of a source, taken in a thread of its own: hashlib frees the interpreter."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._hash = Digester()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._pending: Future[None] | None = None
        self._progress = progress
        self._total = total
        self._expected = 0
        self._sized = False
        self.bytes = 0

    def __enter__(self) -> _Digester:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self, name: str, size: int) -> None:
        self._settle()
        self._expected += size
        self._sized = self._sized or size > 0
        self._hash.begin(name, size)

    def feed(self, block: memoryview) -> None:
        self.bytes += len(block)
        copy = bytes(block)  # the reader uses its buffer again
        self._settle()
        self._pending = self._pool.submit(self._hash.feed, copy)
        if self._progress:
            self._progress(self.bytes, self._total)

    def finish(self, source: Source) -> str:
        """The digest, as 64 hexadecimal digits.

        Raises:
            DataChanged: a file was not as long as it was when its reading began.
        """
        self._settle()
        if self._sized and self.bytes != self._expected:
            raise DataChanged(f"{source.name} changed while it was read", hint="wait until nothing writes to it")
        return self._hash.hexdigest()

    def _settle(self) -> None:
        if self._pending:
            self._pending.result()
            self._pending = None


def check(source: Source, task_type: TaskType, *, progress: Progress | None = None) -> DataRef:
    """Checks every row, counts them, and takes the digest.

    `progress` is told bytes done and bytes in all (0 if unknown).

    Raises:
        DataError: rows are wrong (with up to 20 faults), are of another task type, or there are none.
        DataChanged: a file changed while it was read.
        Unavailable: a file or the hub can't be read.
    """
    faults: list[DataFault] = []
    wrong = rows = 0
    with _Digester(source.bytes, progress) as digester:
        for item in source.raw(digester):
            if isinstance(item, DataFault):
                found = [item]
            else:
                rows += 1
                file, line, value = item
                if fits(value, task_type):
                    continue
                if rows == 1 and not faults:
                    _refuse_other_type(source, value, task_type)
                found = find_faults(value, task_type, file, line)
            if found:
                wrong += 1
                faults += found
                if len(faults) >= FAULT_LIMIT:
                    break
        if faults:
            raise _data_error(source, faults, wrong)
        if not rows:
            raise DataError(f"{source.name} holds no rows", hint="write at least one")
        return DataRef(path=source.path, digest=digester.finish(source), bytes=digester.bytes, rows=rows)


def digest(source: Source) -> DataRef:
    """Digest and size of the data without a look at the rows, which stay uncounted; the digest is `check`'s.

    Raises:
        DataChanged: a file changed while it was read.
        Unavailable: a file or the hub can't be read.
    """
    with _Digester(source.bytes, None) as digester:
        if source.is_hub:
            for _ in source.raw(digester):
                pass
        for path in source.files:
            digester.begin(path.name, path.stat().st_size)
            feed_file(path, digester)
        return DataRef(path=source.path, digest=digester.finish(source), bytes=digester.bytes)


def verify(source: Source, recorded: DataRef) -> None:
    """Makes sure that the data is what it was when `recorded` was taken.

    Raises:
        DataChanged: it is not.
    """
    if digest(source).digest != recorded.digest:
        raise _changed(source)


def read_examples(
    source: Source, task_type: TaskType, *, recorded: DataRef | None = None
) -> Iterator[tuple[str, int, Example]]:
    """The rows as ``(file, line, example)``.

    Raises:
        DataError: a row is wrong, after all: `check` was left out (`validate_inputs=False`).
        DataChanged: at the end, the data that was read is not what `recorded` names.
    """
    with _Digester(source.bytes, None) as digester:
        for number, item in enumerate(source.raw(digester if recorded else None)):
            if isinstance(item, DataFault):
                raise _data_error(source, [item], 1)
            file, line, value = item
            if not fits(value, task_type):
                if number == 0:
                    _refuse_other_type(source, value, task_type)
                if faults := find_faults(value, task_type, file, line):
                    raise _data_error(source, faults, 1)
            yield file, line, example_of(value, task_type)
        if recorded and digester.finish(source) != recorded.digest:
            raise _changed(source)


def _changed(source: Source) -> DataChanged:
    return DataChanged(
        f"{source.name} is not what it was when the run was created",
        hint="create a new run on the data as it is now, or bring the old data back and use `ftctl runs rerun`",
    )


def _refuse_other_type(source: Source, value: Any, task_type: TaskType) -> None:
    if isinstance(value, tuple) and {"chosen", "rejected"} <= {key for key, _ in value}:
        raise DataError(
            f"{source.name}: these rows are preferences (chosen, rejected), and nothing here trains on them (DPO)",
            hint="keep the prompt and the chosen answer of each, as prompt and response, to train on what was chosen",
        )
    other = recognise(value)
    if other in (None, task_type):
        return
    keys = "raw text" if isinstance(value, str) else ", ".join(dict(value))
    raise DataError(
        f"{source.name}: these rows look like {other.value} ({keys}), not {task_type.value}",
        hint=f'pass task_type="{other.value}", or another file',
    )


def _data_error(source: Source, faults: list[DataFault], wrong: int) -> DataError:
    more = len(faults) >= FAULT_LIMIT
    count = "1 row is" if wrong == 1 else f"{wrong} rows are"
    message = f"{source.name}: {'at least ' if more else ''}{count} wrong"
    return DataError(message, faults=faults[:FAULT_LIMIT], more=more)
