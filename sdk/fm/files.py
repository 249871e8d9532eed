"""Writing so that a reader sees all of it or none, and knowing later that it is still what was written.

A single file goes to a temporary name, is synced, and is renamed. So does a folder: it is written in any order, and
becomes whole with its manifest, which is written last and holds size and digest of every other file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any

from fm.errors import Conflict, DiskFull, Unavailable
from fm.layout import MANIFEST

_BLOCK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = {
    errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.EREMOTEIO,
}  # fmt: skip


def passes(error: Exception) -> bool:
    """Whether it is one of those by which a network's disk says that it can't be reached just now."""
    return isinstance(error, OSError) and error.errno in _PASSING


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write below `path` into `DiskFull` or `Unavailable`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"no space left while writing {path}", hint="free some space (`ftctl gc` helps), then resume the run"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise Unavailable(f"can't write {path}: {error.strerror}", hint="check its owner and mode") from error
        raise


def make_private(folder: Path) -> Path:
    """Makes `folder` and the missing ones above it, readable by the owner alone."""
    with disk_errors(folder):
        for missing in reversed([folder, *folder.parents]):
            if not missing.exists():
                missing.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path`, synced and with mode 0600, when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder that appears at `target` when the block, which fills and seals it, ends without an error.

    Until then it has a temporary name beside `target` with this process's number in it; after an error nothing remains.

    Raises:
        Conflict: something else has appeared at `target` meanwhile, and stays.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed and had this number
    with disk_errors(target):
        try:
            yield make_private(temporary)
            try:
                temporary.replace(target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise Conflict(f"{target} exists already", hint="remove it, or choose another place") from error
                raise
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as JSON, whole or not at all."""
    with atomic_writer(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True, default=str).encode())


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_file(path: Path) -> str:
    """SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_each(work: Callable[[Path], str], paths: Sequence[Path]) -> list[str]:
    """`work` of each file, of some at once: reading, hashing and syncing let other threads go on."""
    from concurrent.futures import ThreadPoolExecutor  # only where large files are handled

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, paths))


def seal(folder: Path, **extra: Any) -> dict[str, Any]:
    """Syncs all files below `folder` and writes its manifest, by which it becomes whole. Returns the manifest.

    The manifest holds ``files: {name: {bytes, sha256}}`` and the values of `extra`.
    """
    with disk_errors(folder):
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        files = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, _of_each(_settle, paths), strict=True)
        }
        sync_folder(folder)
        manifest = {**extra, "files": files}
        write_json(folder / MANIFEST, manifest)
    return manifest


def _settle(path: Path) -> str:
    """Makes a file private and lets it survive a power cut. Returns its digest."""
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return digest_file(path)


def digest_folder(folder: Path, patterns: Sequence[str], *, verify: bool) -> str:
    """One SHA-256 over names and digests of the files of `folder` that its manifest names, else of those that fit a
    pattern. Without `verify` a manifest's digests are taken as they stand, and its files are not read."""
    manifest = read_manifest(folder)
    if manifest:
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        if verify:
            files = dict(zip(files, _of_each(digest_file, [folder / name for name in files]), strict=True))
    else:
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        files = dict(zip((path.name for path in paths), _of_each(digest_file, paths), strict=True))
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def read_manifest(folder: Path, *, verify: bool = False) -> dict[str, Any] | None:
    """The manifest of `folder`, or None if the folder is not whole.

    Whole means: the manifest can be read, and every file is there with the size it names; with `verify`, also with
    the digest.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or (verify and digest_file(path) != entry["sha256"]):
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(manifest)


def all_below(path: Path) -> Iterator[Path]:
    """`path`, and all folders and files in it, passing over what is removed meanwhile, where `rglob` would fail."""
    yield path
    for folder, folders, files in os.walk(path):
        yield from (Path(folder, name) for name in (*folders, *files))


def stats_below(path: Path) -> Iterator[os.stat_result]:
    """What `lstat` says of each of them that is still there."""
    for entry in all_below(path):
        with suppress(FileNotFoundError):  # removed by its owner meanwhile
            yield entry.lstat()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, of which some may be removed meanwhile."""
    return sum(found.st_size for found in stats_below(path) if S_ISREG(found.st_mode))
