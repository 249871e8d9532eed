"""A registered model's files, fetched once and checked against the registry's digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from fm.errors import Unavailable
from fm.files import atomic_folder, digest_file, make_private, read_manifest, seal
from fm.remote.client import CALL_SECONDS, SLOWEST, Call, Client
from fm.types import ModelVersion
from fm.wire import PREFIX

_CUTS = 20
"""How often the sending of one file may be cut; each time it goes on from where it was."""


def fetch(client: Client, version: ModelVersion, cache: Path) -> Path:
    """The folder with the files of `version`, fetched unless it is here.

    Raises:
        Unavailable: the server can't be reached, or sends something else than what is registered.
    """
    target = cache / version.name / hashlib.sha256(json.dumps(version.files, sort_keys=True).encode()).hexdigest()[:16]
    if read_manifest(target, verify=True):
        return target
    shutil.rmtree(target, ignore_errors=True)  # damaged since
    make_private(target.parent)
    with atomic_folder(target) as folder:
        for name, digest in version.files.items():
            path = folder / name
            make_private(path.parent)
            _fetch_file(client, version, name, path)
            if digest_file(path) != digest:
                raise Unavailable(f"{name} of {version.ref} arrived damaged from {client.url}", hint="try again")
        seal(folder, kind=version.kind)
    return target


def _fetch_file(client: Client, version: ModelVersion, name: str, path: Path) -> None:
    params = {"ref": version.ref, "name": name}
    seconds = CALL_SECONDS + version.bytes / SLOWEST
    with path.open("wb") as file:
        for cut in range(_CUTS + 1):
            at = file.tell()
            headers = {"Range": f"bytes={at}-"} if at else {}
            call = Call("GET", f"{PREFIX}/models/file", params, headers=headers, seconds=seconds)
            try:
                with client.stream(call) as response:
                    if response.status_code != 206:
                        file.seek(0)
                    for block in response.iter_raw():
                        file.write(block)
                return
            except Unavailable as error:
                # What came before the cut stays; a server that sends nothing more is given up.
                if not error.retryable or cut == _CUTS or file.tell() == at:
                    raise
