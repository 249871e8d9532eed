"""In a Ray job, in the place of `fm_local.ray_job`: writes what a check or a training would have written, untrained."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fm.agent.processes import identify
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SystemClock
from fm.files import write_json
from fm.job import Job
from fm.launching import Life
from fm.layout import StageFolder


def main(folder: StageFolder) -> int:
    job = Job.read(folder)
    refused = "no row keeps a trained token" if job.request.context_length == 8 else ""
    launcher = ScriptedLauncher(Script(save_every=1, check_fails=refused), SystemClock())
    write_json(folder.process, me := identify(os.getpid()))
    handle = launcher.start(cast(Any, SimpleNamespace(id=job.run_id, name=job.run_name)), folder, job.stage)
    while (poll := launcher.poll(handle)).life is Life.ALIVE:
        os.utime(folder.process)
        ordered = folder.order.read_text() if folder.order.exists() else ""
        if ordered:
            launcher.signal(handle, "stop" if ordered == "stop" else "kill")
        time.sleep(0.02)
    write_json(folder.process, {**me, "exit": poll.code})
    return poll.code or 0


if __name__ == "__main__":
    sys.exit(main(StageFolder(Path(sys.argv[2]))))
