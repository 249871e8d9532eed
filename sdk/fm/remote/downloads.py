"""Files of models, checkpoints and data sets: fetched in one go or on from a cut, checked against their digests."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from fm.deadline import within
from fm.errors import Unavailable
from fm.files import atomic_folder, digest_file, make_private, read_manifest, seal
from fm.remote.client import CALL_SECONDS, SLOWEST, Call, Client

_CUTS = 20
"""How often the sending of one file may be cut; each time it goes on from where it was."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files of something are asked for, and what it is called in errors."""

    path: str
    params: Mapping[str, Any]
    what: str


def fetch(client: Client, source: Source, files: Mapping[str, str], cache: Path, **facts: Any) -> Path:
    """The folder below `cache` with `files`, digests by name, fetched unless it is here; `facts` go to its manifest.

    Raises:
        Unavailable: the server can't be reached, or sends something else than what is recorded.
    """
    target = cache / hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()[:16]
    if read_manifest(target, verify=True):
        return target
    shutil.rmtree(target, ignore_errors=True)  # damaged since
    make_private(target.parent)
    with atomic_folder(target) as folder:
        for name, digest in files.items():
            path = folder / name
            make_private(path.parent)
            with path.open("wb") as file:
                _read_into(file, client, source, name)
            if digest_file(path) != digest:
                raise Unavailable(f"{name} of {source.what} arrived damaged from {client.url}", hint="try again")
        seal(folder, **facts)
    return target


def read(client: Client, source: Source, name: str, offset: int) -> IO[bytes]:
    """One file from the byte `offset` on, as a temporary one of this machine."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's to close
    _read_into(file, client, source, name, offset=offset)
    file.seek(0)
    return file


def _read_into(file: IO[bytes], client: Client, source: Source, name: str, *, offset: int = 0) -> None:
    patience = _Patience()
    for cut in range(_CUTS + 1):
        at = file.tell()
        headers = {"Range": f"bytes={offset + at}-"} if offset + at else {}
        call = Call("GET", source.path, {**source.params, "name": name}, headers=headers, seconds=patience.seconds)
        try:
            with client.stream(call) as response:
                if headers and response.status_code != 206:
                    raise Unavailable(f"{client.url} sent all of {name} instead of a part", hint="try again")
                for block in patience.blocks(response):
                    file.write(block)
            return
        except Unavailable as error:
            # What came before the cut stays; a server that sends nothing more is given up.
            if not error.retryable or cut == _CUTS or file.tell() == at:
                raise


class _Patience:
    """How long a file's next bytes are waited for: `CALL_SECONDS`, which are used up by what comes more slowly than
    `SLOWEST` and fill up again by what comes faster."""

    def __init__(self) -> None:
        self.seconds = CALL_SECONDS

    def blocks(self, response: httpx.Response) -> Iterator[bytes]:
        """The body as it comes; a timeout once the seconds are used up."""
        body = response.iter_raw()
        while True:
            began = time.monotonic()
            try:
                with within(self.seconds):
                    block = next(body, None)
            finally:
                self.seconds -= time.monotonic() - began
            if block is None:
                return
            self.seconds = min(CALL_SECONDS, self.seconds + len(block) / SLOWEST)
            yield block
