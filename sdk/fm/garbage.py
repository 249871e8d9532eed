"""What lies below the storage root and belongs to nothing any more: left by removed runs, kills and old data."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fm.errors import Conflict
from fm.files import disk_errors, size_of
from fm.layout import Storage
from fm.settings import Settings
from fm.store.store import RunStore

SHARD_SECONDS = 7 * 86400.0
"""Tokenised data that nothing touched for so long is removed. It can be made again."""
_RECENT_SECONDS = 3600.0
"""What is younger may belong to something that is being made."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file or folder to remove, what it was, and its size."""

    path: Path
    what: str
    bytes: int


def find_garbage(
    settings: Settings, store: RunStore, *, shared: bool = False, now: float | None = None
) -> list[Garbage]:
    """What nothing in `store` refers to.

    Args:
        shared: go on although the storage root lies outside FM_HOME, where other stores may have runs too.

    Raises:
        Conflict: the storage root may be shared with other stores, whose runs are unknown here.
    """
    storage = settings.storage
    if storage.root != settings.home and settings.store_url.startswith("sqlite") and not shared:
        raise Conflict(
            f"other run stores may keep runs in {storage.root} too, and they would look unused from here",
            hint="if this is the only one, say so: ftctl gc --only-store",
        )
    at = time.time() if now is None else now
    return [
        Garbage(path, what, size_of(path))
        for path, what in _unused(settings, storage, store)
        if at - _touched(path) > (SHARD_SECONDS if what == "tokenised data" else _RECENT_SECONDS)
    ]


def remove(found: list[Garbage]) -> None:
    """Removes what `find_garbage` found."""
    for item in found:
        with disk_errors(item.path):
            if item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)


def _unused(settings: Settings, storage: Storage, store: RunStore) -> Iterator[tuple[Path, str]]:
    # Folders first: a run that is stored after this listing has its folder made later still.
    folders = {
        "removed run": _entries(storage.runs),
        "unregistered model": [folder for name in _entries(storage.models) for folder in _entries(name)],
        "tokenised data": _entries(storage.shards),
        "unfinished write": [path for path in _entries(settings.home / "pending") if path.name.endswith(".tmp")],
    }
    unfinished = {run.id for run in store.unfinished()}
    known, registered = store.in_use()
    for path in folders["removed run"]:
        if path.name not in known:
            yield path, "removed run"
    for path in folders["unregistered model"]:
        if path.name not in registered | unfinished:
            yield path, "unregistered model"
    if not unfinished:  # a run that goes on may read any of them
        for path in folders["tokenised data"]:
            yield path, "tokenised data"
    for path in folders["unfinished write"]:
        yield path, "unfinished write"


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _touched(path: Path) -> float:
    """When anything in `path` was last written or read, in seconds since 1970."""
    times = [0.0]
    for file in (path, *(path.rglob("*") if path.is_dir() else ())):
        try:
            stat = file.lstat()
        except FileNotFoundError:  # removed by its owner meanwhile
            continue
        times.append(max(stat.st_mtime, stat.st_atime if file.is_file() else 0.0))
    return max(times)
