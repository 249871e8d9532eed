"""Where files lie that more than one machine needs: data sets, checkpoints, weights.

What is kept is always a *sealed folder*: files, and a manifest with size and digest of each (see `fm.files.seal`). It
is known by its key, a relative path such as ``models/main.qa.bot/run-1``; `fm.layout.Storage` makes them. A sealed
folder never changes, and is there as a whole or not at all: whoever stores one writes its manifest last.

A store in a folder is used where it lies. An object store (any fsspec URL) is used through a cache on this machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from fm.errors import Damaged, NotFound, RequestError, Unavailable
from fm.files import digest_file, disk_errors, make_private, read_manifest, stats_below, sync_folder
from fm.layout import MANIFEST


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies under a key, whole or not: its size, and when it was last written or read, in seconds since 1970."""

    bytes: int
    touched: float


class FileStore(Protocol):
    """Sealed folders by their keys. Safe to use from several threads, processes and machines.

    Everything may raise `Unavailable`, where the store can't be reached or written.
    """

    @property
    def where(self) -> str:
        """The folder or URL, for people to read."""

    def put(self, key: str, folder: Path, *, move: bool = False) -> None:
        """Stores the sealed folder. What is there already stays, and counts as just written.

        With `move` the folder is not needed afterwards: it is renamed where that is possible, and is gone in any case.

        Raises:
            NotFound: `folder` is not whole.
        """

    def manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of what is stored; None if it is not there as a whole."""

    def local(self, key: str) -> Path | None:
        """Where the files lie on this machine without being brought; None where they don't."""

    def fetch(self, key: str) -> Path:
        """A folder of this machine with the files, brought if need be; then their digests are checked.

        Raises:
            NotFound: there is nothing of that key.
        """

    def open(self, key: str, name: str, *, offset: int = 0) -> IO[bytes]:
        """One file, to be read from the byte `offset` on, without bringing the others.

        Raises:
            NotFound: there is nothing of that key, or no file of that name in it.
        """

    def list(self, prefix: str) -> list[str]:
        """What begins with `prefix` and a slash, up to the next slash, in order: also what is not whole."""

    def usage(self, key: str) -> Usage:
        """What lies under `key` or below it."""

    def delete(self, key: str) -> None:
        """Removes what lies under `key` or below it, manifests first; nothing if nothing is there."""


def open_store(url: str, cache: Path) -> FileStore:
    """The store at `url`, a folder or an fsspec URL such as ``s3://bucket/prefix``; `cache` is for the latter.

    Raises:
        RequestError: fsspec knows no such URL.
        MissingExtra: what it needs is not installed.
    """
    if url.startswith("file://") or "://" not in url:
        return FolderStore(Path(url.removeprefix("file://")).expanduser().absolute())
    from fm.objectstore import ObjectStore

    return ObjectStore(url, cache)


def check_key(key: str) -> str:
    """Returns `key`, or the name of a file below one, if it stays below what it is joined to.

    Raises:
        RequestError: it would not.
    """
    parts = key.split("/")
    if "\\" in key or not key.isprintable() or any(part in ("", ".", "..") or len(part) > 255 for part in parts):
        raise RequestError(f"{key!r} can't name a stored file", hint="write names separated by single slashes")
    return key


def require_file(key: str, name: str, manifest: Mapping[str, Any] | None) -> str:
    """Returns `name` if `manifest`, that of `key`, has it.

    Raises:
        NotFound: it has not.
    """
    if manifest is None:
        raise missing(key)
    if name not in manifest["files"]:
        raise NotFound(f"there is no file {name!r} in {key}")
    return check_key(name)


def missing(key: str) -> NotFound:
    """What is raised where a key is asked for that is not there."""
    return NotFound(f"the file store has no {key}", hint="it was removed, or FM_FILES names another store")


def copy_sealed(source: Path, target: Path) -> None:
    """Fills the folder `target` with the files of the sealed folder `source`, as second names of the same bytes where
    the disk can do that, else as copies whose digests are checked. Then the manifest.

    Raises:
        NotFound: `source` is not whole, or has been removed meanwhile.
    """
    manifest = read_manifest(source)
    if manifest is None:
        raise NotFound(f"{source} is not whole")
    try:
        for name, entry in manifest["files"].items():
            file = target / name
            make_private(file.parent)
            try:
                os.link(source / name, file)
            except (OSError, NotImplementedError):  # another disk, or one that knows no second names
                _copy(source / name, file)
                _check(file, entry)
        _copy(source / MANIFEST, target / MANIFEST)
    except FileNotFoundError as error:
        raise NotFound(f"{source} was removed while it was copied") from error


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o600)


def _check(file: Path, entry: Mapping[str, Any]) -> None:
    if digest_file(file) != entry["sha256"]:
        raise Damaged(f"{file} is not what its manifest says", hint="the disk that it was copied from may be bad")


class FolderStore:
    """A store in a folder of this machine, or one that several machines mount.

    Who may read and write in the store is said by the mode and the group of its root alone: what is stored gets them
    too. So users of one group share a store whose root has mode 2770.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def where(self) -> str:
        return str(self.root)

    def put(self, key: str, folder: Path, *, move: bool = False) -> None:
        target = self._path(key)
        if target == folder:
            return
        with disk_errors(target):
            if read_manifest(target):
                os.utime(target / MANIFEST)
            elif read_manifest(folder):
                self._make(target.parent)
                shutil.rmtree(target, ignore_errors=True)  # damaged
                self._bring_in(folder, target, move=move)
            else:
                raise NotFound(f"{folder} is not whole")
        if move:
            shutil.rmtree(folder, ignore_errors=True)

    def _bring_in(self, folder: Path, target: Path, *, move: bool) -> None:
        if move:
            self._share(folder)
            # In one step: at no moment is it in neither place.
            if _renamed(folder, target):
                sync_folder(target.parent)
                return
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            unfinished.mkdir(mode=0o700)
            copy_sealed(folder, unfinished)
            self._share(unfinished)
            sync_folder(unfinished)
            if not _renamed(unfinished, target) and read_manifest(target) is None:
                raise Unavailable(f"can't rename {unfinished} to {target}", hint="check who may write there")
            sync_folder(target.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def manifest(self, key: str) -> dict[str, Any] | None:
        return read_manifest(self._path(key))

    def local(self, key: str) -> Path | None:
        path = self._path(key)
        return path if (path / MANIFEST).is_file() else None

    def fetch(self, key: str) -> Path:
        if read_manifest(self._path(key)) is None:
            raise missing(key)
        return self._path(key)

    def open(self, key: str, name: str, *, offset: int = 0) -> IO[bytes]:
        file = (self._path(key) / require_file(key, name, self.manifest(key))).open("rb")
        file.seek(offset)
        return file

    def list(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        if not folder.is_dir():
            return []
        return sorted(f"{prefix}/{path.name}" for path in folder.iterdir())

    def usage(self, key: str) -> Usage:
        return usage_of(self._path(key))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with disk_errors(path):
            if path.is_file():
                path.unlink(missing_ok=True)
            # Without its manifest it does not exist: nobody finds one that is half removed.
            for manifest in path.rglob(MANIFEST):
                manifest.unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _make(self, folder: Path) -> None:
        make_private(self.root)
        for missing in reversed([folder, *folder.parents]):
            if missing.is_relative_to(self.root) and not missing.exists():
                missing.mkdir(mode=0o700, exist_ok=True)
                missing.chmod(self._mode())

    def _mode(self) -> int:
        return stat.S_IMODE(self.root.stat().st_mode) & 0o2770

    def _share(self, folder: Path) -> None:
        """Gives `folder` and all in it the root's group and mode, where the root is shared with a group."""
        mode, group = self._mode(), self.root.stat().st_gid
        if not mode & 0o070:
            return
        for path in (folder, *folder.rglob("*")):
            if path.stat().st_gid != group:
                os.chown(path, -1, group)
            path.chmod(mode if path.is_dir() else mode & 0o660)


def _renamed(folder: Path, target: Path) -> bool:
    """Whether `folder` could be renamed to `target`, which lies on the same disk then."""
    try:
        folder.rename(target)
    except OSError:
        return False
    return True


def usage_of(path: Path) -> Usage:
    """Size of all files at or below `path`, and when anything there was last written or read."""
    size, touched = 0, 0.0
    for found in stats_below(path):
        is_file = stat.S_ISREG(found.st_mode)
        size += found.st_size if is_file else 0
        touched = max(touched, found.st_mtime, found.st_atime if is_file else 0.0)
    return Usage(size, touched)
