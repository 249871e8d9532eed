"""Data sets that clients send: kept for each team under the digest that `fm.data` takes, and never without it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from fm.backends.stored import StoreBackend
from fm.data import digest as digest_of
from fm.data import locate
from fm.data.source import SUFFIXES
from fm.errors import DataChanged, NotFound, RequestError
from fm.files import atomic_writer, disk_errors, make_private, read_manifest, seal, sync_folder
from fm.types import DataRef
from fm.wire import Data

_DATA = "data"


def find(view: StoreBackend, data: Data) -> DataRef:
    """The data set of that digest, if the caller's team has sent it.

    Raises:
        NotFound: it has not.
    """
    folder = view.storage.dataset(view.principal.team, data.digest)
    manifest = read_manifest(folder)
    if manifest is None:
        raise NotFound(f"there is no data set {data.digest[:12]}…", hint="send its files first")
    return DataRef(path=str(_source(folder)), digest=data.digest, bytes=manifest["bytes"], rows=data.rows)


async def receive(view: StoreBackend, digest: str, name: str, blocks: AsyncIterable[bytes]) -> None:
    """Keeps a file of a data set that is being sent."""
    _check_name(name)
    folder = await run_in_threadpool(make_private, _incoming(view, digest) / _DATA)
    with atomic_writer(folder / name) as file:
        async for block in blocks:
            await run_in_threadpool(file.write, block)


def finish(view: StoreBackend, digest: str, names: tuple[str, ...]) -> None:
    """Takes the data set in, once its files make the digest.

    Raises:
        NotFound: one of them has not been sent.
        DataChanged: they don't: something was cut, or changed while it was sent.
    """
    target, incoming = view.storage.dataset(view.principal.team, digest), _incoming(view, digest)
    if read_manifest(target):
        return
    for name in names:
        if not (incoming / _DATA / name).is_file():
            raise NotFound(f"the file {name} of data set {digest[:12]}… has not been sent", hint="send it first")
    for path in (incoming / _DATA).iterdir():
        if path.name not in names:  # of a sending that was given up
            path.unlink()
    found = digest_of(locate(str(_source(incoming)), field="train_data_path"))
    if found.digest != digest:
        shutil.rmtree(incoming)
        raise DataChanged("the data that arrived is not what was announced", hint="send it again")
    seal(incoming, bytes=found.bytes)
    with disk_errors(target):
        incoming.rename(target)
        sync_folder(target.parent)


def _incoming(view: StoreBackend, digest: str) -> Path:
    return view.storage.dataset(view.principal.team, f".{digest}.incoming")


def _source(folder: Path) -> Path:
    """What `locate` is to find: the file, or the folder of several."""
    files = list((folder / _DATA).iterdir())
    return files[0] if len(files) == 1 else folder / _DATA


def _check_name(name: str) -> None:
    path = Path(name)
    if path.name != name or "\\" in name or "\0" in name or path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{name!r} can't name a data file", field="name", hint=f"one of {', '.join(SUFFIXES)}")
