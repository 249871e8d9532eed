"""The Ray launcher: a stage is a job of a Ray cluster, and its processes are workers of Ray Train.

What happened is read from the stage's folder, which the cluster's nodes share with the agent; Ray is only asked where
the folder says nothing. A job that Ray has lost, or a head that can't be reached, is therefore no failure.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fm
from fm.agent import processes
from fm.errors import FMError, RequestError, Unauthorised, Unavailable
from fm.job import Job, Reporter, Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder
from fm.lifecycle import EventType, Fault
from fm.ray.cluster import RayCluster, RayJob
from fm.ray.placing import Ask, no_room, place
from fm.types import RunRecord

_ASK_EVERY = 2.0
"""Seconds between two questions to Ray about one job; the folder is looked at each time."""
_LOST_AFTER = 20.0
"""Seconds without a sign from the first worker, after which a job that Ray knows nothing of is over. A living worker
signs every second, whatever it does."""
_ENTRY = "fm_local.ray_job"
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE",
    # Each line of each process, as it is, with the process that printed it.
    "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(slots=True)
class _Watch:
    """What was last seen of a job by this agent."""

    asked: float = float("-inf")
    job: RayJob | None = None
    reached: bool = False
    sign: tuple[int, int] | None = None
    signed: float = 0.0


class RayLauncher:
    """Starts stages as jobs of a Ray cluster."""

    def __init__(self, cluster: RayCluster | None = None, *, entry: str = _ENTRY) -> None:
        """`cluster` is by default the one that FM_RAY_ADDRESS names, `entry` the module that a job runs: as
        ``python -m entry stage folder version …``."""
        self._own = cluster
        self._entry = entry
        self._watches: dict[str, _Watch] = {}
        self._clusters = {cluster.address: cluster} if cluster else {}

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        cluster = self._own or RayCluster.of_environment()
        cluster.check_version()
        job_id = f"{run.id}-{Job.read(folder).attempt if stage == 'train' else 'check'}"
        for older in cluster.unfinished(f"{run.id}-"):
            if older != job_id:
                cluster.stop(older)
        ask = self._place(cluster, run, stage)
        handle = {"address": cluster.address, "job": job_id, "folder": str(folder.path), "stage": stage}
        before = cluster.job(job_id)
        if before and not before.ended:
            return handle  # an agent died between asking for it and noting it
        if before:
            cluster.forget(job_id)
        environment = runtime_environment(run.caller.env)
        cluster.submit(job_id, self._command(folder, stage, ask), environment, cpus=1 if stage == "check" else 0)
        return handle

    def poll(self, handle: Handle) -> Poll:
        folder = StageFolder(Path(handle["folder"]))
        if (code := processes.noted_exit(folder)) is not None:
            return Poll(Life.EXITED, code)
        watch, now = self._watches.setdefault(handle["job"], _Watch(signed=time.monotonic())), time.monotonic()
        if (sign := _sign(folder)) != watch.sign:
            watch.sign, watch.signed = sign, now
        if now - watch.asked >= _ASK_EVERY:
            watch.asked = now
            self._ask(handle, watch)
        silent = now - watch.signed > _LOST_AFTER
        if not watch.reached:
            return Poll(Life.UNKNOWN if silent else Life.ALIVE)
        if watch.job is None:
            return Poll(Life.EXITED) if silent else Poll(Life.ALIVE)
        if not watch.job.ended:
            return Poll(Life.ALIVE)
        if watch.job.status != "SUCCEEDED" and (not folder.log.exists() or not folder.log.stat().st_size):
            self._explain(handle, folder, watch.job)
        return Poll(Life.EXITED, watch.job.exit_code)

    def signal(self, handle: Handle, how: Literal["stop", "kill"]) -> None:
        folder = StageFolder(Path(handle["folder"]))
        training = handle["stage"] == "train" and folder.process.exists()
        folder.order.write_text("stop" if how == "stop" and training else "kill")
        if how == "kill" or not training:
            with suppress(Unavailable, Unauthorised):  # its workers look for the order by themselves
                self._cluster(handle).stop(handle["job"])

    def _place(self, cluster: RayCluster, run: RunRecord, stage: Stage) -> Ask:
        if stage == "check":
            return Ask(1, 1, {"CPU": 1.0})
        nodes = cluster.nodes()
        if (ask := place(run.request, nodes)) is None:
            raise Unavailable(no_room(run.request, nodes))
        return ask

    def _command(self, folder: StageFolder, stage: Stage, ask: Ask) -> str:
        words = ["python", "-m", self._entry, stage, str(folder.path), fm.__version__]
        return shlex.join([*words, str(ask.nodes), str(ask.per_node), json.dumps(ask.each)])

    def _cluster(self, handle: Handle) -> RayCluster:
        if handle["address"] not in self._clusters:
            self._clusters[handle["address"]] = RayCluster.at(handle["address"])
        return self._clusters[handle["address"]]

    def _ask(self, handle: Handle, watch: _Watch) -> None:
        try:
            watch.job, watch.reached = self._cluster(handle).job(handle["job"]), True
        except (Unavailable, Unauthorised):
            watch.reached = False

    def _explain(self, handle: Handle, folder: StageFolder, job: RayJob) -> None:
        """Says for a job that ended before it could write into its folder why it did, if that will not pass by itself:
        what it printed, or what Ray says."""
        printed = ""
        with suppress(Unavailable, Unauthorised):
            printed = self._cluster(handle).logs(handle["job"])
        folder.log.write_text(printed or job.message + "\n")
        if job.error != "RUNTIME_ENV_SETUP_FAILED" and not (job.exit_code or 0) > 0:
            return
        told = [line.removeprefix("ftctl: ") for line in printed.splitlines() if line.startswith("ftctl: ")]
        last = [line for line in (printed or job.message).splitlines() if line.strip()]
        why = told[-1] if told else f"Ray could not start its job {handle['job']}: {last[-1] if last else 'no reason'}"
        reporter = Reporter(folder)
        event = EventType.FAILED if handle["stage"] == "train" else EventType.CHECK_FAILED
        reporter.event(event, why, fault=Fault.INFRASTRUCTURE.value, exit_code=job.exit_code)
        reporter.close()


def _sign(folder: StageFolder) -> tuple[int, int] | None:
    """What changes in the folder as long as the job's first worker lives. Opened, since only then does a network disk
    show what others have written."""
    try:
        with folder.process.open("rb") as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def runtime_environment(own: Mapping[str, str]) -> dict[str, Any]:
    """A job's environment: what FM_RAY_ENV says, a YAML file of Ray's own fields, and `own`, the run's variables. A
    value ``${NAME}`` there is taken from the agent's environment: no store ever holds it.

    Raises:
        RequestError: the file can't be read, or refers to a variable that is not set.
    """
    found: dict[str, Any] = {}
    if path := os.environ.get("FM_RAY_ENV"):
        import yaml

        try:
            found = yaml.safe_load(Path(path).expanduser().read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise _bad_environment(path, str(error)) from None
        if not isinstance(found, dict) or not isinstance(found.get("env_vars", {}), dict):
            raise _bad_environment(path, "it holds no mapping, or an env_vars that is none")
    variables = {name: _resolved(str(value), os.environ) for name, value in found.get("env_vars", {}).items()}
    kept = {name: value for name, value in own.items() if not name.startswith(("CUDA_", "FM_"))}
    return {**found, "env_vars": {**kept, **_QUIET, **variables}}


def _resolved(value: str, environment: Mapping[str, str]) -> str:
    if not (value.startswith("${") and value.endswith("}")):
        return value
    name = value[2:-1]
    if name not in environment:
        raise _bad_environment(os.environ["FM_RAY_ENV"], f"{name}, to which it refers, is not set here")
    return environment[name]


def _bad_environment(path: str, problem: str) -> FMError:
    return RequestError(
        f"FM_RAY_ENV is {path}: {problem}",
        field="FM_RAY_ENV",
        hint="a YAML file with Ray's fields, such as pip and env_vars; ${NAME} stands for a variable of the agent",
    )
