"""A worker of Ray Train: one process of a training, in the place where `torchrun` would start it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.job import EXIT_STOPPED
from fm.layout import StageFolder
from fm_local.ray_job.fence import is_over, order
from fm_local.trainer.__main__ import do_job, note_exit

SHARE = "set FM_RUNS to a folder that all of its nodes and the agent's machine share under one path"
"""What to do about a run's folder that a node does not have."""


class RankFailed(Exception):
    """This process could not finish; the others end with it."""


class Misplaced(RankFailed):
    """This process can't work where it was put, and another attempt could not either."""


def train(config: dict[str, Any]) -> None:
    """Does the job in ``config["folder"]`` together with the other workers. Ray Train has set the variables by which
    accelerate knows them.

    Raises:
        RankFailed: it ended otherwise than by finishing, or by stopping as it was asked to.
    """
    began, folder = datetime.now(UTC), StageFolder(Path(config["folder"]))
    node, rank, count = os.uname().nodename, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    print(f"process {rank + 1} of {count} on {node}", flush=True)
    if not folder.job.exists():
        raise Misplaced(f"{folder.path} is not there on the Ray cluster's node {node}: {SHARE}")
    stop = threading.Event()
    threading.Thread(target=_tend, args=(folder, stop), daemon=True).start()
    code = do_job(folder, stop.is_set, began=began)
    note_exit(folder, code)
    if code not in (0, EXIT_STOPPED):
        raise RankFailed(f"exit code {code}")


def _tend(folder: StageFolder, stop: threading.Event) -> None:
    """Shows each second that this process lives, and obeys what the folder orders."""
    first = os.environ.get("RANK", "0") == "0"
    while not is_over(folder):
        if order(folder) == "stop":
            stop.set()
        if first:
            with suppress(OSError):  # not there yet, or just being replaced
                os.utime(folder.process)
        time.sleep(1)
    os._exit(EXIT_STOPPED)
