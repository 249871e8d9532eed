"""The idempotency key of a create that has not been acknowledged yet, kept where a crash can't lose it.

A key is made once for each logical create, and written to ``FM_HOME/pending`` before the request is sent. A script
that is killed between sending and acknowledgement, and is run again, finds the dead owner's key there and so gets the
run that was made. A live owner's key is left alone: two live scripts with the same request get two runs. An
acknowledged key is deleted, so a script that is deliberately run again makes a new run.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fm.errors import Conflict, DataError, FMError, MissingExtra, NotFound, RequestError
from fm.files import disk_errors, make_private, write_json

_REFUSALS = (RequestError, DataError, NotFound, Conflict, MissingExtra)
"""Answers that say for certain that no run was made."""


def new_key() -> str:
    """A key that no other create has."""
    return secrets.token_hex(16)


@contextmanager
def pending_key(folder: Path, digest: str) -> Iterator[str]:
    """The key to send with the create whose request has `digest`; acknowledged when the block ends without error.

    A block that ends with an error which leaves open whether the run was made gives the key up, for whoever asks for
    the same next.
    """
    path, key = _claim(folder, digest)
    try:
        yield key
    except BaseException as error:
        if isinstance(error, _REFUSALS):
            path.unlink(missing_ok=True)
        else:
            # What the user must see is the first error; the key of this live process is merely not shared.
            with suppress(FMError, OSError):
                write_json(path, {"key": key, "pid": None, "started": None})
        raise
    path.unlink(missing_ok=True)


def _claim(folder: Path, digest: str) -> tuple[Path, str]:
    make_private(folder)
    me = psutil.Process()
    owner = {"pid": me.pid, "started": me.create_time()}
    with _locked(folder / ".lock"):
        for path in sorted(folder.glob(f"{digest}*.json")):
            left = _read(path)
            if left and not _alive(left.get("pid"), left.get("started")):
                write_json(path, {"key": left["key"], **owner})
                return path, str(left["key"])
        key = new_key()
        path = folder / f"{digest}.json"
        if path.exists():
            path = folder / f"{digest}-{key[:8]}.json"
        write_json(path, {"key": key, **owner})
        return path, key


def _read(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("key") else None


def _alive(pid: object, started: object) -> bool:
    if not isinstance(pid, int) or not isinstance(started, (int, float)):
        return False
    try:
        process = psutil.Process(pid)
        # A zombie runs no more code; another start time means that the number was given to another process.
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file; the operating system frees it if this process is killed."""
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
