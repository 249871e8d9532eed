"""A file store on any fsspec URL (``s3://…``), through a cache on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from fm.errors import Damaged, FMError, MissingExtra, NotFound, RequestError, Unavailable
from fm.files import atomic_folder, digest_file, make_private, read_manifest
from fm.filestore import Usage, check_key, missing, require_file
from fm.layout import MANIFEST


class ObjectStore:
    """Sealed folders as objects ``<url>/<key>/<file>``; the manifest is the last that is written of one.

    What is fetched lies in the cache from then on: a whole folder or none, each file checked against its digest.
    """

    def __init__(self, url: str, cache: Path) -> None:
        """See `fm.filestore.open_store`."""
        scheme = url.partition("://")[0]
        try:
            from fsspec.core import url_to_fs

            # Its own lists of what is there would not show what other machines have stored since.
            self._files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            problem = f"FM_FILES={scheme}://… needs {error.name or scheme}, not installed here"
            raise MissingExtra(problem, extra="server") from error
        except ValueError as error:
            raise RequestError(
                f"FM_FILES: {error}", field="FM_FILES", hint="write a folder, or a URL such as s3://bucket/prefix"
            ) from error
        self._root = root.rstrip("/")
        self._cache = cache
        self._scheme = scheme

    @property
    def where(self) -> str:
        return f"{self._scheme}://{self._root.lstrip('/')}"

    def put(self, key: str, folder: Path, *, move: bool = False) -> None:
        there = self.manifest(key) is not None
        manifest = read_manifest(folder, verify=not there)
        if manifest is None:
            raise NotFound(f"{folder} is not whole, or damaged, and was not stored as {key}")
        with self._errors(f"store {key}"):
            for name in (MANIFEST,) if there else (*manifest["files"], MANIFEST):
                self._files.put_file(str(folder / name), self._at(key, name))
        if move:
            shutil.rmtree(folder, ignore_errors=True)

    def manifest(self, key: str) -> dict[str, Any] | None:
        with self._errors(f"look for {key}"):
            try:
                return dict(json.loads(self._files.cat_file(self._at(key, MANIFEST))))
            except FileNotFoundError:
                return None

    def local(self, key: str) -> Path | None:
        path = self._cache / check_key(key)
        return path if (path / MANIFEST).is_file() else None

    def fetch(self, key: str) -> Path:
        target = self._cache / check_key(key)
        if read_manifest(target):
            os.utime(target / MANIFEST)  # `ftctl gc` leaves what was used lately
            return target
        manifest = self.manifest(key)
        if manifest is None:
            raise missing(key)
        make_private(target.parent)
        with self._alone(key):
            if read_manifest(target) is None:
                _remove(target)
                with atomic_folder(target) as unfinished:
                    self._download(key, manifest, unfinished)
        return target

    def _download(self, key: str, manifest: dict[str, Any], folder: Path) -> None:
        for name, entry in manifest["files"].items():
            file = folder / check_key(name)
            make_private(file.parent)
            with self._errors(f"fetch {key}/{name}"):
                self._files.get_file(self._at(key, name), str(file))
            file.chmod(0o600)
            if digest_file(file) != entry["sha256"]:
                raise Damaged(f"{key}/{name} in {self.where} is not what its manifest says", hint="store it again")
        (folder / MANIFEST).write_bytes(json.dumps(manifest, indent=1, sort_keys=True).encode())

    def open(self, key: str, name: str, *, offset: int = 0) -> IO[bytes]:
        at = self._at(key, require_file(key, name, self.manifest(key)))
        with self._errors(f"read {key}/{name}"):
            file = self._files.open(at, "rb")
            file.seek(offset)
        return cast("IO[bytes]", file)

    def list(self, prefix: str) -> list[str]:
        with self._errors(f"list {prefix}"):
            try:
                found = self._files.ls(self._at(prefix), detail=False)
            except FileNotFoundError:
                return []
        names = {path.rstrip("/").rpartition("/")[2] for path in found}
        return sorted(f"{prefix}/{name}" for name in names if name)

    def usage(self, key: str) -> Usage:
        with self._errors(f"look at {key}"):
            found = self._files.find(self._at(key), detail=True).values()
        times = [info.get("LastModified") or info.get("created") or info.get("mtime") or 0.0 for info in found]
        seconds = [time.timestamp() if isinstance(time, datetime) else float(time) for time in times]
        return Usage(sum(int(info["size"] or 0) for info in found), max(seconds, default=0.0))

    def delete(self, key: str) -> None:
        with self._errors(f"remove {key}"):
            # Without its manifest it does not exist: nobody finds one that is half removed.
            found = self._files.find(self._at(key))
            for path in found:
                if path.endswith(f"/{MANIFEST}"):
                    self._files.rm_file(path)
            if found:
                self._files.rm(self._at(key), recursive=True)
        _remove(self._cache / key)

    def _at(self, key: str, name: str = "") -> str:
        return "/".join(part for part in (self._root, check_key(key), name) if part)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Lets nobody else on this machine fetch `key` meanwhile: gigabytes are not brought twice."""
        locks = make_private(self._cache / ".locks")
        path = locks / hashlib.sha256(key.encode()).hexdigest()[:32]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FMError:
            raise
        except Exception as error:  # each of fsspec's implementations has its own
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise Unavailable(
                f"can't {what} in the file store {self.where}: {reason}"[:400],
                hint="check its address and credentials, and that the bucket exists",
            ) from error


def _remove(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
