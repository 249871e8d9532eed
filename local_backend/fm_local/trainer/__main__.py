"""``python -m fm_local.trainer <attempt folder>``: does the job that lies in the folder, and exits.

Exit codes: 0 done, 1 failed (an event says why), 75 stopped (after saving, or for a newer attempt), 76 disk full,
77 another of its processes was lost.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fm.agent.processes import leftover
from fm.errors import FMError
from fm.files import passes, write_json
from fm.heap import importing, keep
from fm.job import EXIT_DISK_FULL, EXIT_FAILED, EXIT_LOST, EXIT_STOPPED, Job, Reporter
from fm.layout import RunFolder, StageFolder

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""The training needs no network, and nobody is to hear of it."""


def main(folder: StageFolder) -> int:
    """Trains in `folder`; returns the exit code."""
    # Before anything that takes time: a request to stop must never find nobody listening.
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if "RANK" in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return do_job(folder, stop.is_set)


def do_job(folder: StageFolder, stop_requested: Callable[[], bool], *, began: datetime | None = None) -> int:
    """Trains in `folder` as one of the processes that do; returns the exit code. `began` is when the training began, if
    it had to wait for its place; else it counts from when the agent started it."""
    if not _own(folder, began):
        return EXIT_STOPPED  # not 0, by which torchrun would let the other ranks wait for this one
    os.environ.update(_QUIET)
    job: Job | None = None
    try:
        with importing():
            from fm_local.plan.budget import budget_of
            from fm_local.trainer.loop import train
        keep()

        job = Job.read(folder)
        job = job.model_copy(update={"started_at": max(began, job.started_at)}) if began else job
        budget = budget_of(job)._asdict() if _is_first() else {}  # the first process's counts for all
        done = train(job, folder, stop_requested=stop_requested, **budget)
        return 0 if done else EXIT_STOPPED
    except Exception as error:
        traceback.print_exc()
        return _report(folder, error, job)


def is_outdated(folder: StageFolder) -> bool:
    """Whether a newer attempt has taken the place of the one in `folder`."""
    attempts = RunFolder(folder.path.parent.parent).attempts()
    return bool(attempts) and attempts[0][0] > int(folder.path.name)


def _own(folder: StageFolder, began: datetime | None) -> bool:
    """Writes who does this job, then looks whether a newer attempt has taken its place. An agent makes the newer folder
    before it looks for this process, so one of the two always sees the other."""
    if _is_first():
        write_json(folder.process, _identity() | ({"began": began.timestamp()} if began else {}))
    return not is_outdated(folder)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _identity() -> dict[str, Any]:
    import psutil

    process = psutil.Process()
    return {"pid": process.pid, "started": process.create_time(), "host": socket.gethostname()}


def _end_with(parent: int) -> None:
    """Ends this rank once the torchrun that started it is gone, even killed: nobody else would."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(EXIT_FAILED)


def note_exit(folder: StageFolder, code: int) -> None:
    """Writes the exit code where the launcher finds it: torchrun exits with 1 whatever its ranks say, and an agent that
    has adopted this process sees no code at all."""
    if _is_first():
        with suppress(FMError, OSError):  # a full disk; the process itself exits with the code too
            write_json(folder.process, {**(leftover(folder) or _identity()), "exit": code})


def _report(folder: StageFolder, error: Exception, job: Job | None) -> int:
    from fm.errors import DiskFull
    from fm_local.trainer.failures import failure_event, is_lost_peer

    if isinstance(error, DiskFull):
        return EXIT_DISK_FULL
    if is_lost_peer(error) or passes(error):
        return EXIT_LOST  # what befell the other one, or the network's disk, is for whoever knows of it to say
    type, message, fault = failure_event(error, job.request if job else None)
    try:
        reporter = Reporter(folder)
        reporter.event(type, message, fault=fault.value, exit_code=EXIT_FAILED)
        reporter.close()
    except DiskFull:
        return EXIT_DISK_FULL
    return EXIT_FAILED


if __name__ == "__main__":
    own_folder = StageFolder(Path(sys.argv[1]).absolute())
    exit_code = main(own_folder)
    note_exit(own_folder, exit_code)
    keep()
    sys.exit(exit_code)
