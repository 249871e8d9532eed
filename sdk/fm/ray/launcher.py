"""The Ray launcher: a stage is a job of a Ray cluster, and its processes are workers of Ray Train.

What happened is read from the stage's folder, which the cluster's nodes share with the agent; Ray is only asked where
the folder says nothing. A job that Ray has lost, or a head that can't be reached, is therefore no failure.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import fm
from fm.agent import processes
from fm.errors import FMError, RequestError, Unauthorised, Unavailable
from fm.job import Job, Reporter, Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder
from fm.lifecycle import EventType, Fault
from fm.ray.cluster import NO_ENVIRONMENT, RayCluster, RayJob
from fm.ray.placing import Ask, no_room, place
from fm.request import TrainRequest
from fm.types import RunRecord

_ASK_EVERY = 2.0
"""Seconds between two questions to Ray about one job; the folder is looked at each time."""
_LOST_AFTER = 20.0
"""Seconds without a sign from the first worker, after which a job that Ray knows nothing of is over. A living worker
signs every second, whatever it does."""
_SLOWEST = 30.0
"""Seconds between two attempts to hand a job to a cluster that does not take it; it begins with two, and doubles."""
_TELL_AFTER = 30.0
"""Seconds after which a run that waits for the cluster says for what."""
_PREPARING = 1800.0
"""Seconds that Ray may take to prepare a job's environment and to start it."""
_ENTRY = "fm_local.ray_job"
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE",
    # Each line of each process, as it is, with the process that printed it.
    "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0",
    # A process that would tell the training of nodes that are about to be taken away; nobody there listens.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(slots=True)
class _Watch:
    """What was last seen of a job by this agent."""

    began: float
    ask_at: float
    pause: float = _ASK_EVERY
    """Seconds until the cluster is asked again to take the job."""
    job: RayJob | None = None
    reached: bool = False
    sign: tuple[int, int] | None = None
    signed: float = 0.0
    told: set[str] = field(default_factory=set)


class RayLauncher:
    """Starts stages as jobs of a Ray cluster."""

    def __init__(
        self, cluster: RayCluster | None = None, *, entry: str = _ENTRY, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`cluster` is by default the one that FM_RAY_ADDRESS names, `entry` the module that a job runs: as
        ``python -m entry stage folder version …``; `now` is a clock in seconds."""
        self._own = cluster
        self._entry = entry
        self._now = now
        self._watches: dict[str, _Watch] = {}
        self._clusters = {cluster.address: cluster} if cluster else {}

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        """Names the job. `poll` hands it to the cluster, and does so again until the cluster takes it: so it is one
        attempt, and one folder, however long that lasts."""
        cluster = self._own or RayCluster.of_environment()
        number = Job.read(folder).attempt if stage == "train" else f"check-{secrets.token_hex(3)}"
        handle = {"address": cluster.address, "run": run.id, "job": f"{run.id}-{number}"}
        return handle | {"folder": str(folder.path), "stage": stage, "env": run.caller.env}

    def poll(self, handle: Handle) -> Poll:
        folder = StageFolder(Path(handle["folder"]))
        if (code := processes.noted_exit(folder)) is not None:
            return Poll(Life.EXITED, code)
        now = self._now()
        watch = self._watches.setdefault(handle["job"], _Watch(began=now, ask_at=now, signed=now))
        if (sign := _sign(folder)) != watch.sign:
            watch.sign, watch.signed = sign, now
        has_begun = folder.log.exists() or sign is not None
        if not has_begun and not (watch.reached and watch.job) and folder.order.exists():
            return Poll(Life.EXITED)  # should a cluster that can't be asked begin it after all, it sees the order
        if now >= watch.ask_at:
            watch.ask_at = now + _ASK_EVERY
            try:
                self._ask(handle, folder, watch, has_begun=has_begun)
            except Unavailable as error:
                if not has_begun:
                    self._wait(folder, watch, error.message)
        silent = has_begun and now - watch.signed > _LOST_AFTER
        if not watch.reached:
            return Poll(Life.UNKNOWN if silent else Life.ALIVE)
        if watch.job is None:
            return Poll(Life.EXITED if silent else Life.ALIVE)
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

    def _ask(self, handle: Handle, folder: StageFolder, watch: _Watch, *, has_begun: bool) -> None:
        """Asks for the job; hands it over if the cluster has none of that name and it can't have begun.

        Raises:
            Unavailable: the cluster can't be reached, is not ready for jobs, or has no room.
        """
        cluster, watch.reached = self._cluster(handle), False
        try:
            watch.job = cluster.job(handle["job"])
        except Unauthorised:
            if has_begun:
                return
            raise
        watch.reached = True
        if watch.job or has_begun:
            return
        cluster.check_version()
        for older in cluster.unfinished(f"{handle['run']}-"):
            cluster.stop(older)
        stage, request = handle["stage"], Job.read(folder).request
        ask = _place(cluster, request) if stage == "train" else Ask(1, 1, {"CPU": 1.0})
        environment = runtime_environment(handle["env"])
        cluster.submit(handle["job"], self._command(folder, stage, ask), environment, cpus=1 if stage == "check" else 0)
        watch.job, watch.signed = RayJob("PENDING"), self._now()

    def _wait(self, folder: StageFolder, watch: _Watch, why: str) -> None:
        """Puts off the next attempt to hand the job over, and says after a while for what it waits."""
        now = self._now()
        watch.ask_at, watch.pause = now + watch.pause, min(2 * watch.pause, _SLOWEST)
        with closing(Reporter(folder)) as reporter:
            reporter.pause("waiting", _PREPARING)
            if now - watch.began >= _TELL_AFTER and why not in watch.told:
                watch.told.add(why)
                reporter.event(EventType.WARNING, f"waits for the Ray cluster: {why}", waits_for="cluster")

    def _command(self, folder: StageFolder, stage: Stage, ask: Ask) -> str:
        words = ["python", "-m", self._entry, stage, str(folder.path), fm.__version__]
        return shlex.join([*words, str(ask.nodes), str(ask.per_node), json.dumps(ask.each)])

    def _cluster(self, handle: Handle) -> RayCluster:
        if handle["address"] not in self._clusters:
            self._clusters[handle["address"]] = RayCluster.at(handle["address"])
        return self._clusters[handle["address"]]

    def _explain(self, handle: Handle, folder: StageFolder, job: RayJob) -> None:
        """Says for a job that ended before it could write into its folder why it did, if that will not pass by itself:
        what it printed, or what Ray says."""
        printed = ""
        with suppress(Unavailable, Unauthorised):
            printed = self._cluster(handle).logs(handle["job"])
        folder.log.write_text(printed or job.message + "\n")
        if job.error != NO_ENVIRONMENT and not (job.exit_code or 0) > 0:
            return
        told = [line.removeprefix("ftctl: ") for line in printed.splitlines() if line.startswith("ftctl: ")]
        last = [line for line in (printed or job.message).splitlines() if line.strip()]
        why = told[-1] if told else f"Ray could not start its job {handle['job']}: {last[-1] if last else 'no reason'}"
        event = EventType.FAILED if handle["stage"] == "train" else EventType.CHECK_FAILED
        with closing(Reporter(folder)) as reporter:
            reporter.event(event, why, fault=Fault.INFRASTRUCTURE.value, exit_code=job.exit_code)


def _place(cluster: RayCluster, request: TrainRequest) -> Ask:
    """Where the request's processes go now.

    Raises:
        Unavailable: there is no room for them.
    """
    nodes = cluster.nodes()
    if (ask := place(request, nodes)) is None:
        raise Unavailable(no_room(request, nodes))
    return ask


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
