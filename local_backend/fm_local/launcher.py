"""The process launcher: a stage is a process of this machine, or as many as the request's `num_processes`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from fm.agent import processes
from fm.files import disk_errors, make_private
from fm.job import Job, Stage
from fm.launching import GRACE, Handle, Life, Poll
from fm.layout import StageFolder
from fm.types import RunRecord

_MODULES = {"check": "fm_local.prepare", "train": "fm_local.trainer"}
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONUNBUFFERED": "1",
}
"""No library opens a connection that the user did not ask for."""
_POLITE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other sleep. By default they spin, and on a machine that others use too a training
then takes four times as long (measured: 62 s, and 15 s with this). The caller's environment may say otherwise."""
_SECRETS = ("FM_STORE", "FM_FILES", "FM_TOKEN", "FM_RAY_ADDRESS")
"""What may hold a password or is one. A trainer knows nothing of stores, servers and clusters, and runs code of others:
its environment does not have them."""


class ProcessLauncher:
    """Starts stages as detached processes, each leading a session of its own, so that none dies with its agent."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        # The caller may be another user, with an interpreter that can't be looked at from here.
        python = run.caller.python if os.access(run.caller.python, os.X_OK) else sys.executable
        make_private(folder.path)
        with disk_errors(folder.log), folder.log.open("ab") as log:
            folder.log.chmod(0o600)
            child = subprocess.Popen(
                _command(python, run, folder, stage),
                cwd=folder.path,
                env=_environment(run, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return processes.identify(child.pid) | {"folder": str(folder.path)}

    def poll(self, handle: Handle) -> Poll:
        code = None
        if child := self._children.get(handle["pid"]):
            code = child.poll()
            alive: bool | None = code is None
        else:
            alive = processes.is_alive(handle)
        if alive is None:
            return Poll(Life.UNKNOWN)
        if alive:
            return Poll(Life.ALIVE)
        noted = processes.noted_exit(StageFolder(Path(handle["folder"])))
        return Poll(Life.EXITED, code if noted is None else noted)

    def signal(self, handle: Handle, how: Literal["stop", "kill"]) -> None:
        processes.send(handle, how)


def _command(python: str, run: RunRecord, folder: StageFolder, stage: Stage) -> list[str]:
    count = run.request.num_processes
    target = ["-m", _MODULES[stage], str(folder.path)]
    if stage == "check" or count == 1:
        return [python, *target]
    # `accelerate launch --cpu` starts a single process, whatever number it is told; torchrun starts as many.
    here = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return [python, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *here, *target]


def _environment(run: RunRecord, folder: StageFolder) -> dict[str, str]:
    environment = {**_POLITE, **os.environ, **run.caller.env, **_QUIET}
    # torchrun passes a request to stop on to its ranks, and by default kills them 30 s later.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE.seconds))
    for name in _SECRETS:
        environment.pop(name, None)
    if devices := Job.read(folder).devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    return environment
