"""Sending a data set to the file store: the loop around an upload's three orders, whichever backend takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fm.backends.base import Files
from fm.data import Source
from fm.errors import Conflict, DataChanged, NotFound, Unsupported
from fm.types import DataFile, Dataset

PART = 4 << 20
"""Bytes sent at once."""
_FRUITLESS = 5
"""Refusals in a row without a byte more, after which somebody else's sending is not what is in the way."""

Progress = Callable[[int, int], None]


def send(
    files: Files, source: Source, digest: str, *, rows: int | None, sensitive: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Sends what the file store has not yet of `source`, from where an earlier sending was cut.

    With `sensitive` it is marked so before anybody can see it, or at once where the team has it already.

    Several clients may send the same at once: each goes on where the bytes end that have arrived.

    Raises:
        Unsupported: it is a data set of the hub.
        DataChanged: the data is not what it was when `digest` was taken.
    """
    if source.is_hub:
        raise Unsupported(
            f"{source.name} is a data set of the hub, which a server does not fetch", field="train_data_path",
            hint="save it first: datasets.load_dataset(…).to_json('train.jsonl'), then pass that file",
        )
    listing = [DataFile(path.name, path.stat().st_size) for path in source.files]
    total, fruitless, best = sum(file.bytes for file in listing), 0, -1
    while True:
        arrived = files.begin(digest, listing)
        fruitless = fruitless + 1 if arrived <= best else 0
        best = max(best, arrived)
        try:
            while arrived < total:
                if progress:
                    progress(arrived, total)
                arrived = files.append(digest, arrived, _read(source.files, listing, arrived))
            return files.finish(digest, name=source.name, rows=rows, sensitive=sensitive)
        except (Conflict, NotFound):  # another client sends, or has just sent, the same
            if fruitless >= _FRUITLESS:
                raise


def _read(paths: Sequence[Path], listing: Sequence[DataFile], offset: int) -> bytes:
    """Up to a part of the stream of all files, from `offset` on and out of one file."""
    for path, (name, size) in zip(paths, listing, strict=True):
        if offset < size:
            with path.open("rb") as file:
                file.seek(offset)
                if part := file.read(min(PART, size - offset)):
                    return part
            raise DataChanged(f"{name} became shorter while it was sent", hint="wait until nothing writes to it")
        offset -= size
    return b""
