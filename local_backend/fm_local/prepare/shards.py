"""Tokenised data as flat memory-mapped arrays: written as a stream, whole with its manifest, found again by digest.

::

    shards/<digest>/
    ├── ids.bin          token ids of all examples one behind the other, uint16 or uint32 by vocabulary
    ├── mask.bin         one byte for each id: whether it is trained; absent where all are
    ├── offsets.bin      int64: where each example begins in both, and the end
    ├── trained.bin      int32: trained tokens of each example, without its first token, which nothing predicts
    └── manifest.json    files with their digests; dtype; counts
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fm.errors import Conflict, Unavailable
from fm.files import atomic_folder, disk_errors, read_manifest
from fm.layout import Storage

FORMAT = 2
"""Part of each shard's digest; changed whenever the same data would give other shards."""

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class TokenDataset:
    """The examples of a shard.

    Attributes:
        lengths: int64 (examples,): tokens of each.
        trained: int64 (examples,): trained tokens of each, counted after the shift: a label at position 0 has nothing
            that predicts it.
    """

    def __init__(self, ids: npt.NDArray[Any], mask: npt.NDArray[np.uint8] | None, offsets: Ids, trained: Ids) -> None:
        self._ids = ids
        self._mask = mask
        self._offsets = offsets
        self.lengths: Ids = np.diff(offsets)
        self.trained = trained

    @classmethod
    def open(cls, folder: Path) -> TokenDataset:
        """The shard in `folder`.

        Raises:
            Unavailable: it is not whole.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise Unavailable(f"the tokenised data in {folder} is not whole", hint="create the run again")
        mask = folder / "mask.bin"
        return cls(
            np.memmap(folder / "ids.bin", np.dtype(manifest["dtype"]), "r"),
            np.memmap(mask, np.uint8, "r") if mask.name in manifest["files"] else None,
            np.fromfile(folder / "offsets.bin", np.int64),
            np.fromfile(folder / "trained.bin", np.int32).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Ids, Mask]:
        """Token ids of example `index`, and which of them are trained; both (tokens,)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin, end = self._offsets[index], self._offsets[index + 1]
        ids = np.asarray(self._ids[begin:end]).astype(np.int64)
        if self._mask is None:
            return ids, np.ones(len(ids), np.bool_)
        return ids, np.asarray(self._mask[begin:end]).astype(np.bool_)


class ShardWriter:
    """Writes examples one by one; nothing but the example's offset and count stays in memory."""

    def __init__(self, folder: Path, *, vocabulary: int, masked: bool) -> None:
        self._folder = folder
        self.dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
        self._ids = _create(folder / "ids.bin")
        self._mask = _create(folder / "mask.bin") if masked else None
        self._ends = _create(folder / "offsets.bin")
        self._ends.write(np.zeros(1, np.int64).tobytes())
        self._trained = _create(folder / "trained.bin")
        self.examples = self.tokens = self.trained_tokens = 0

    def write(self, rows: Sequence[tuple[npt.NDArray[Any], bytes]]) -> None:
        """Adds examples: ids, and for each id a byte that is 1 if it is trained."""
        if not rows:
            return
        ids = np.concatenate([row[0] for row in rows]).astype(self.dtype, copy=False)
        lengths = np.fromiter((len(row[0]) for row in rows), np.int64, len(rows))
        masks = [bytes(row[1]) for row in rows]
        trained = np.fromiter((mask.count(1, 1) for mask in masks), np.int32, len(rows))
        with disk_errors(self._folder):
            self._ids.write(ids.tobytes())
            if self._mask:
                self._mask.write(b"".join(masks))
            self._ends.write((np.cumsum(lengths) + self.tokens).tobytes())
            self._trained.write(trained.tobytes())
        self.examples += len(rows)
        self.tokens += len(ids)
        self.trained_tokens += int(trained.sum())

    def close(self) -> None:
        with disk_errors(self._folder):
            for file in (self._ids, self._mask, self._ends, self._trained):
                if file:
                    file.close()


def digest_of(**parts: Any) -> str:
    """The name of what is made from `parts`: equal parts give the same, in this version of the format."""
    text = json.dumps({**parts, "format": FORMAT}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def making(storage: Storage, digest: str) -> Iterator[Path]:
    """A temporary folder that becomes the shard `digest` if the block, which fills and seals it, ends without an error.

    Where another process made the same shard meanwhile, that one stays: equal digests have equal contents.
    """
    target = storage.shard(digest)
    if read_manifest(target) is None:
        shutil.rmtree(target, ignore_errors=True)  # damaged
    try:
        with atomic_folder(target) as unfinished:
            yield unfinished
    except Conflict:
        if read_manifest(target) is None:
            raise


def discard_unfinished(storage: Storage) -> None:
    """Removes what this process was making, before it ends itself."""
    for folder in storage.shards.glob(f".*.{os.getpid()}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def _create(path: Path) -> IO[bytes]:
    with disk_errors(path):
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=1 << 20)
