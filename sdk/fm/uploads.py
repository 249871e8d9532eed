"""Data sets on their way in: resumable uploads, of which nothing is seen before the digest has been checked.

A data set travels as one stream: the bytes of its files, in the order in which they are listed. What has arrived lies
below a folder of the receiving machine; an upload that was cut goes on from there, as often as it takes, also for
another client that sends the same data.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fm.errors import Conflict, DataChanged, DiskFull, NotFound, RequestError
from fm.files import disk_errors, make_private, write_json
from fm.filestore import check_key
from fm.layout import MANIFEST
from fm.types import DataFile

MOST_FILES = 1000
"""Files of one data set."""
_FREE_PARTS = 1000
_PART_BYTES = 64 << 10
"""An upload may come in 1,000 parts of any size, and one more for each 64 KiB: cuts are forgiven, a trickle is not."""
_BLOCK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Digester:
    """SHA-256 over name, size and bytes of each file in turn: the digest of a data set."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, name: str, size: int) -> None:
        """The bytes that follow are those of the file `name`."""
        self._hash.update(f"{len(name)}:{name}:{size}\n".encode("utf-8", "surrogateescape"))

    def feed(self, block: bytes | memoryview) -> None:
        self._hash.update(block)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class Uploads:
    """The unfinished uploads below `folder`. Safe to use from several threads and processes of one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, team: str, digest: str, files: Sequence[DataFile]) -> int:
        """Starts the upload of the data set, or finds the one that was started. Returns how many bytes have arrived.

        Raises:
            RequestError: the digest is none, there are too many files, or a name or size can't be one.
            DiskFull: the announced bytes don't fit the disk.
        """
        _check(digest, files)
        upload = self._path(team, digest)
        listing = [list(file) for file in files]
        with disk_errors(upload), self._locked(upload, make=True):
            known = _listing(upload)
            if known is not None and [list(file) for file in known] != listing:
                _empty(upload)  # two clients announced one digest differently: at most one of them can be right
                known = None
            if known is None:
                self._require_space(sum(file.bytes for file in files))
                make_private(upload / "files")
                write_json(upload / "listing.json", listing)
            return _arrived(upload, files)

    def append(self, team: str, digest: str, offset: int, part: bytes) -> int:
        """Takes the bytes from `offset` on. Returns how many have arrived now.

        Raises:
            NotFound: no such upload was begun, or it has been finished.
            Conflict: `offset` is not where the bytes that have arrived end; `begin` says where.
            RequestError: there are more bytes than were announced, or far too many parts.
        """
        upload = self._path(team, digest)
        with disk_errors(upload), self._locked(upload):
            files = _listing(upload)
            if files is None:
                raise _not_begun(digest)
            arrived, total = _arrived(upload, files), sum(file.bytes for file in files)
            if offset != arrived:
                raise Conflict(f"{arrived} bytes of {digest[:12]}… have arrived, not {offset}", hint="go on there")
            if offset + len(part) > total:
                raise RequestError(
                    f"{offset + len(part)} bytes of data set {digest[:12]}…, of which {total} were announced",
                    field="offset", hint="announce each file's size as it is, and begin again",
                )
            _count_part(upload, total)
            _write(upload, files, offset, part)
            return offset + len(part)

    @contextmanager
    def finish(self, team: str, digest: str) -> Iterator[Path]:
        """The sealed folder of the upload, all of which has arrived and has that digest: ``files/`` and a manifest.

        When the block, which moves it to where it belongs, ends without an error, nothing of the upload remains.

        Raises:
            NotFound: no such upload was begun, or it has been finished.
            Conflict: not all bytes have arrived.
            DataChanged: they have another digest. The upload is discarded.
        """
        upload = self._path(team, digest)
        with disk_errors(upload), self._locked(upload):
            files = _listing(upload)
            if files is None:
                raise _not_begun(digest)
            arrived, total = _arrived(upload, files), sum(file.bytes for file in files)
            if arrived != total:
                raise Conflict(f"{arrived} of {total} bytes of {digest[:12]}… have arrived", hint="send the rest")
            sealed = make_private(upload / "sealed")
            manifest: dict[str, object] = {"kind": "data", "listing": [list(file) for file in files]}
            if (found := _seal(upload / "files", files, manifest)) != digest:
                shutil.rmtree(upload)
                raise DataChanged(
                    f"what was sent has the digest {found[:12]}…, not {digest[:12]}…; nothing of it was kept",
                    hint="send it again while nothing writes to the files",
                )
            (upload / "files").rename(sealed / "files")
            write_json(sealed / MANIFEST, manifest)
            yield sealed
            shutil.rmtree(upload)

    def announced(self, team: str, *, but: str) -> int:
        """The bytes that the team's unfinished uploads will have, that of the data set `but` left out."""
        others = (path for path in self._folder.glob(f"{_short(team)}-*") if path != self._path(team, but))
        return sum(file.bytes for path in others for file in _listing(path) or ())

    def discard(self, team: str, digest: str) -> None:
        """Removes the upload; nothing if there is none."""
        upload = self._path(team, digest)
        with suppress(NotFound), disk_errors(upload), self._locked(upload):
            shutil.rmtree(upload)

    def _path(self, team: str, digest: str) -> Path:
        return self._folder / f"{_short(team)}-{_short(digest)}"

    def _require_space(self, size: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise DiskFull(f"{size} bytes were announced, and {free} are free in {self._folder}")

    @contextmanager
    def _locked(self, upload: Path, *, make: bool = False) -> Iterator[None]:
        """Nobody else works on the upload meanwhile; `make` begins one where there is none."""
        while True:
            if make:
                make_private(upload)
            try:
                descriptor = os.open(upload, os.O_RDONLY)
            except FileNotFoundError:
                if make:  # finished by another client between the two lines above
                    continue
                raise NotFound("no such upload was begun, or it has been finished", hint="begin it") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_still(upload, descriptor):
                    yield
                    return
            finally:
                os.close(descriptor)


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _check(digest: str, files: Sequence[DataFile]) -> None:
    if not _DIGEST.fullmatch(digest):
        raise RequestError(f"{digest[:80]!r} is no SHA-256", field="digest", hint="write 64 hexadecimal digits")
    if not 0 < len(files) <= MOST_FILES:
        raise RequestError(f"a data set of {len(files)} files", field="files", hint=f"1 to {MOST_FILES} can be sent")
    for name, size in files:
        if "/" in check_key(name) or name != name.encode("utf-8", "replace").decode() or size < 0:
            raise RequestError(f"{name!r} of {size} bytes can't be sent", field="files", hint="rename the file")
    names = [file.name for file in files]
    if sorted(set(names)) != names or not any(file.bytes for file in files):
        raise RequestError(
            "files that are not in the order of their names, or without any bytes", field="files",
            hint="list each file once, sorted by name",
        )


def _is_still(upload: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(upload.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _listing(upload: Path) -> list[DataFile] | None:
    try:
        return [DataFile(*entry) for entry in json.loads((upload / "listing.json").read_bytes())]
    except FileNotFoundError:
        return None


def _empty(upload: Path) -> None:
    (upload / "listing.json").unlink()
    shutil.rmtree(upload / "files", ignore_errors=True)
    (upload / "parts").unlink(missing_ok=True)


def _arrived(upload: Path, files: Sequence[DataFile]) -> int:
    """The bytes that are here. Files are filled one after the other, so what is here is the beginning of the stream."""
    if (upload / "sealed" / "files").exists():  # killed between the check of the digest and the move
        (upload / "sealed" / "files").rename(upload / "files")
    arrived = 0
    for name, size in files:
        path = upload / "files" / name
        here = path.stat().st_size if path.exists() else 0
        arrived += here
        if here < size:
            break
    return arrived


def _count_part(upload: Path, total: int) -> None:
    """Counts by the size of a file, which survives a kill."""
    with open(os.open(upload / "parts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as file:
        if file.tell() >= _FREE_PARTS + total // _PART_BYTES:
            raise RequestError(
                f"the upload came in {file.tell()} parts already", field="part",
                hint="send parts of a megabyte or more",
            )
        file.write(b".")


def _write(upload: Path, files: Sequence[DataFile], offset: int, part: bytes) -> None:
    """Adds `part`, the bytes of the stream from `offset` on, to the files that it belongs to."""
    rest = memoryview(part)
    for name, size in files:
        if offset >= size and (size or offset):
            offset -= size
            continue
        with open(os.open(upload / "files" / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            file.write(rest[: size - offset])
        rest, offset = rest[size - offset :], 0
        if not rest:
            return


def _seal(folder: Path, files: Sequence[DataFile], manifest: dict[str, object]) -> str:
    """Syncs the files, puts their digests into `manifest`, and returns the digest of the data set: in one reading."""
    whole, entries = Digester(), {}
    for name, size in files:
        own = hashlib.sha256()
        whole.begin(name, size)
        with open(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
            while block := file.read(_BLOCK):
                whole.feed(block)
                own.update(block)
            os.fsync(file.fileno())
        entries[f"files/{name}"] = {"bytes": size, "sha256": own.hexdigest()}
    manifest["files"] = entries
    return whole.hexdigest()


def _not_begun(digest: str) -> NotFound:
    return NotFound(f"no upload of data set {digest[:12]}… was begun, or it has been finished", hint="begin it again")
