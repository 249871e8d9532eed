"""The check stage as a process: ``python -m fm_local.prepare <stage folder>``."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

# The tokenizers don't need torch, and importing it would double the time that this process takes to start.
# transformers asks whether it is installed; None in its place means no.
sys.modules["torch"] = None  # type: ignore[assignment]
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from fm.agent import processes  # noqa: E402
from fm.errors import DataError, DiskFull, FMError, MissingExtra, Unavailable  # noqa: E402
from fm.files import write_json  # noqa: E402
from fm.heap import importing, keep  # noqa: E402
from fm.job import EXIT_DISK_FULL, EXIT_FAILED, EXIT_STOPPED, Job, Reporter  # noqa: E402
from fm.layout import StageFolder, Storage  # noqa: E402
from fm.lifecycle import EventType, Fault  # noqa: E402


def main(folder: StageFolder) -> int:
    """Does the stage in `folder`, and returns the exit code."""
    job = Job.read(folder)

    def stop(*_: Any) -> None:
        from fm_local.prepare.shards import discard_unfinished

        discard_unfinished(Storage(Path(job.storage_root)))
        os._exit(EXIT_STOPPED)

    signal.signal(signal.SIGTERM, stop)
    # In a thread, because a signal waits for the main thread to come back from what it does, as training a tokenizer.
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        done = pool.submit(_work, job, folder)
        # By turns, since a signal may reach another thread and then does not wake this one.
        while not wait([done], timeout=0.2).done:
            pass
        return done.result()


def _work(job: Job, folder: StageFolder) -> int:
    try:
        write_json(folder.process, processes.identify(os.getpid()))
        return _report(job, Reporter(folder))
    except DiskFull as error:
        print(error, flush=True)
        return EXIT_DISK_FULL


def _report(job: Job, reporter: Reporter) -> int:
    try:
        with importing():
            from fm_local.prepare.stage import prepare
        keep()
        prepared = prepare(job, lambda message, data: reporter.event(EventType.WARNING, message, **data))
    except DiskFull:
        raise
    except FMError as error:
        fault = Fault.INFRASTRUCTURE if isinstance(error, Unavailable | MissingExtra) else Fault.USER
        rows = [str(row) for row in error.faults] if isinstance(error, DataError) else []
        reporter.event(EventType.CHECK_FAILED, str(error), fault=fault.value, exit_code=EXIT_FAILED, rows=rows)
        return EXIT_FAILED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(str(error)) from error
        traceback.print_exc()
        message = f"the data check failed unexpectedly: {type(error).__name__}: {error}"
        reporter.event(EventType.FAILED_EXCEPTION, message, fault=Fault.INTERNAL.value, exit_code=EXIT_FAILED)
        return EXIT_FAILED
    counts = prepared["counts"]
    message = f"{counts['examples']} examples, {counts['tokens']} tokens, {counts['trained_tokens']} of them trained"
    reporter.event(EventType.CHECK_PASSED, message, **prepared)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fm_local.prepare <stage folder>")
    exit_code = main(StageFolder(Path(sys.argv[1])))
    keep()
    sys.exit(exit_code)
