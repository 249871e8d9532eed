"""A local backend in a folder of its own, with everything it started ended afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from fm.backends.local import open_local
from fm.backends.stored import StoreBackend


@contextmanager
def local_backend(home: Path, **more: str) -> Iterator[StoreBackend]:
    """The local backend of FM_HOME=`home`. On leaving, agents and trainers that belong to it are killed."""
    settings = {"FM_HOME": str(home), "HF_HUB_OFFLINE": "1", **more}
    settings.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        backend = open_local()
        yield backend
        backend.close()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for process in processes_of(home):
            process.kill()


def processes_of(home: Path) -> list[psutil.Process]:
    """The agents and trainers that work below `home`: their working folder lies there."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(home) and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found
