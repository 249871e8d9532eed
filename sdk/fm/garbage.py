"""What belongs to nothing any more, here and in the file store: left by removed runs, kills, cut uploads, old data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from fm.agent.inputs import are_apart
from fm.errors import Conflict
from fm.filestore import FileStore, FolderStore
from fm.settings import Settings
from fm.store.store import RunStore

_HOUR = 3600.0
_AFTER = {
    "tokenised data": 7 * 24 * _HOUR,
    "copy of stored files": 7 * 24 * _HOUR,
    "folder of a run that is put out": 7 * 24 * _HOUR,
    "abandoned upload": 24 * _HOUR,
}
"""Seconds without a touch after which what can be made or brought again, or may still be gone on with, is removed. The
rest goes after an hour: what is younger may belong to something that is being made."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What to remove: where it lies, what it was, its size, and when it was last touched."""

    store: FileStore
    key: str
    what: str
    bytes: int
    touched: float

    @property
    def place(self) -> str:
        return f"{self.store.where.rstrip('/')}/{self.key}"


def find_garbage(
    settings: Settings, store: RunStore, *, shared: bool = False, now: float | None = None
) -> list[Garbage]:
    """What nothing in `store` refers to.

    Args:
        shared: go on although storage root or file store lie outside FM_HOME, where other stores may have runs too.

    Raises:
        Conflict: they may be shared with other stores, whose runs are unknown here.
        Unavailable: the file store can't be reached.
    """
    elsewhere = settings.storage.root != settings.home or settings.files_url is not None
    if elsewhere and settings.store_url.startswith("sqlite") and not shared:
        raise Conflict(
            f"other run stores may keep runs in {settings.files_url or settings.storage.root} too, and they would look "
            "unused from here",
            hint="if this is the only one, say so: ftctl gc --only-store",
        )
    at, found = time.time() if now is None else now, []
    for place, key, what in _unused(settings, store):
        usage = place.usage(key)
        if at - usage.touched > _AFTER.get(what, _HOUR):
            found.append(Garbage(place, key, what, usage.bytes, usage.touched))
    return found


def remove(found: list[Garbage]) -> None:
    """Removes what `find_garbage` found, but for what has been touched since."""
    for item in found:
        if item.store.usage(item.key).touched == item.touched:
            item.store.delete(item.key)


def _unused(settings: Settings, store: RunStore) -> Iterator[tuple[FileStore, str, str]]:
    here, files, home = FolderStore(settings.storage.root), settings.open_files(), FolderStore(settings.home)
    places: list[FileStore] = [files, here] if are_apart(files, settings.storage) else [files]
    # What there is comes first: a run that is stored after this listing has its folder made later still.
    runs = [(place, key) for place in places for key in place.list("runs")]
    models = [(place, key) for place in places for name in place.list("models") for key in place.list(name)]
    data = [(place, key) for place in places for key in place.list("data")]
    shards = here.list("shards")
    known, registered = store.in_use()
    unfinished, digests = {run.id for run in store.unfinished()}, store.known_digests()
    for place, key in runs:
        if _last(key) not in known:
            yield place, key, "removed run"
        elif place is not files and _last(key) not in unfinished:
            yield place, key, "folder of a run that is put out"
    for place, key in models:
        if _last(key) not in registered | unfinished:
            yield place, key, "unregistered model"
    for place, key in data:
        if _last(key) not in digests:
            yield place, key, "removed data set"
    if not unfinished:  # a run that goes on may read any of them
        for key in shards:
            yield here, key, "tokenised data"
    for key in here.list("uploads"):
        yield here, key, "abandoned upload"
    for kind in here.list("cache"):
        if not _last(kind).startswith("."):
            for key in here.list(kind):
                yield here, key, "copy of stored files"
    for key in here.list("preflights"):
        yield here, key, "abandoned preflight"
    for key in home.list("pending"):
        if key.endswith(".tmp"):
            yield home, key, "unfinished write"


def _last(key: str) -> str:
    return key.rpartition("/")[2]
