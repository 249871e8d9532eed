"""Sending data files: only what the server has not, and shown while it takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from fm.data import locate
from fm.errors import NotFound, Unsupported
from fm.pending import new_key
from fm.progress import upload_progress
from fm.remote.client import CALL_SECONDS, SLOWEST, Call, Client
from fm.types import DataRef
from fm.wire import PREFIX, FileNames

_BLOCK = 1 << 18


def send(client: Client, path: str, digest: str) -> None:
    """Brings the data at `path`, whose digest is `digest`, to the server, unless it is there.

    Raises:
        Unsupported: it lies on a hub.
        DataChanged: it is not what the digest was taken of.
    """
    where = f"{PREFIX}/datasets/{digest}"
    try:
        client.ask(DataRef, Call("GET", where))
        return
    except NotFound:
        source = locate(path, field="train_data_path")
    if source.is_hub:
        raise Unsupported(
            f"{path} is a data set of the hub, which a server does not fetch", field="train_data_path",
            hint="save it first: datasets.load_dataset(…).to_json('train.jsonl'), then pass that file",
        )
    with upload_progress(source.name) as progress:
        done = 0
        for file in source.files:
            size, name = file.stat().st_size, quote(file.name, safe="")
            blocks = _blocks(file, progress, done, source.bytes)
            headers, seconds = {"Content-Length": str(size)}, CALL_SECONDS + size / SLOWEST
            client.send(Call("PUT", f"{where}/files/{name}", content=blocks, headers=headers, seconds=seconds))
            done += size
    body = FileNames(files=tuple(file.name for file in source.files))
    client.send(Call("POST", where, body=body, key=new_key(), seconds=CALL_SECONDS + source.bytes / SLOWEST))


def _blocks(
    path: Path, progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[], Iterator[bytes]]:
    """Reads the file anew whenever it is called."""

    def read() -> Iterator[bytes]:
        done = before
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
                done += len(block)
                if progress:
                    progress(done, total)

    return read
