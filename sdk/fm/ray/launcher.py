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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import fm
from fm.agent import processes
from fm.errors import FMError, RequestError, Unauthorised, Unavailable
from fm.files import disk_errors, write_json
from fm.job import Job, Reporter, Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder, Storage
from fm.lifecycle import EventType, Fault
from fm.ray.cluster import NO_ENVIRONMENT, NOT_STARTED, RayCluster, RayJob
from fm.ray.environment import runtime_environment
from fm.ray.placing import Ask, gpus_each, no_room, place
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
        with suppress(OSError):  # a network's disk that is away for a moment is no sign of anything
            if (sign := _sign(folder)) != watch.sign:
                watch.sign, watch.signed = sign, now
        has_begun = folder.log.exists() or watch.sign is not None
        if not has_begun and not (watch.reached and watch.job) and folder.order.exists():
            return Poll(Life.EXITED)  # should a cluster that can't be asked begin it after all, it sees the order
        if now >= watch.ask_at:
            watch.ask_at = now + _ASK_EVERY
            try:
                self._ask(handle, folder, watch, has_begun=has_begun)
            except Unavailable as error:
                if not has_begun:
                    self._wait(folder, watch, error.message)
            except (Unauthorised, RequestError):
                if not has_begun:
                    raise
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
        try:
            with disk_errors(folder.order):
                folder.order.write_text("stop" if how == "stop" and training else "kill")
        finally:
            if how == "kill" or not training:
                with suppress(FMError), self._asking(handle) as cluster:  # its workers look for the order by themselves
                    cluster.stop(handle["job"])

    def _ask(self, handle: Handle, folder: StageFolder, watch: _Watch, *, has_begun: bool) -> None:
        """Asks for the job; hands it over if the cluster has none of that name and it can't have begun.

        Raises:
            Unavailable: the cluster can't be reached, is not ready for jobs, or has no room.
            Unauthorised, RequestError: it refuses the token, or there is none to be read.
        """
        watch.reached = False
        with self._asking(handle) as cluster:
            watch.job = cluster.job(handle["job"])
            watch.reached = True
            if has_begun:
                return
            if watch.job and watch.job.error == NOT_STARTED:
                # As long as others have all that there is. Ray would take no second job of that name.
                watch.job = None
                cluster.forget(handle["job"])
                raise Unavailable("it has had no room for the job's own process")
            if watch.job is None:
                self._hand_over(cluster, handle, folder)
                watch.job, watch.signed = RayJob("PENDING"), self._now()
            elif watch.job.status == "PENDING":
                self._tell(folder, watch, watch.job.message)

    def _hand_over(self, cluster: RayCluster, handle: Handle, folder: StageFolder) -> None:
        cluster.check_version()
        for older in cluster.unfinished(f"{handle['run']}-"):
            cluster.stop(older)
        stage = handle["stage"]
        ask = _place(cluster, Job.read(folder)) if stage == "train" else Ask(1, 1, {"CPU": 1.0})
        environment = runtime_environment(handle["env"])
        cluster.submit(handle["job"], self._command(folder, stage, ask), environment, cpus=1 if stage == "check" else 0)

    def _wait(self, folder: StageFolder, watch: _Watch, why: str) -> None:
        """Puts off the next attempt to hand the job over, and says after a while for what it waits."""
        watch.ask_at, watch.pause = self._now() + watch.pause, min(2 * watch.pause, _SLOWEST)
        with closing(Reporter(folder)) as reporter:
            reporter.pause("waiting", _PREPARING)
        self._tell(folder, watch, why)

    def _tell(self, folder: StageFolder, watch: _Watch, why: str) -> None:
        if why and self._now() - watch.began >= _TELL_AFTER and why not in watch.told:
            watch.told.add(why)
            with closing(Reporter(folder)) as reporter:
                reporter.event(EventType.WARNING, f"waits for the Ray cluster: {why}", waits_for="cluster")

    def _command(self, folder: StageFolder, stage: Stage, ask: Ask) -> str:
        words = ["python", "-m", self._entry, stage, str(folder.path), fm.__version__]
        return shlex.join([*words, str(ask.nodes), str(ask.per_node), json.dumps(ask.each)])

    @contextmanager
    def _asking(self, handle: Handle) -> Iterator[RayCluster]:
        """The cluster that has the job."""
        address = handle["address"]
        if address not in self._clusters:
            self._clusters[address] = RayCluster.at(address)
        try:
            yield self._clusters[address]
        except Unauthorised:
            del self._clusters[address]  # the next look reads the token anew
            raise

    def _explain(self, handle: Handle, folder: StageFolder, job: RayJob) -> None:
        """Says for a job that ended before it could write into its folder why it did, if that will not pass by itself:
        what it printed, or what Ray says."""
        printed = ""
        with suppress(FMError), self._asking(handle) as cluster:
            printed = cluster.logs(handle["job"])
        folder.log.write_text(printed or job.message + "\n")
        if job.error != NO_ENVIRONMENT and not (job.exit_code or 0) > 0:
            return
        told = [line.removeprefix("ftctl: ") for line in printed.splitlines() if line.startswith("ftctl: ")]
        last = [line for line in (printed or job.message).splitlines() if line.strip()]
        why = told[-1] if told else f"Ray could not start its job {handle['job']}: {last[-1] if last else 'no reason'}"
        event = EventType.FAILED if handle["stage"] == "train" else EventType.CHECK_FAILED
        with closing(Reporter(folder)) as reporter:
            reporter.event(event, why, fault=Fault.INFRASTRUCTURE.value, exit_code=job.exit_code)


def _place(cluster: RayCluster, job: Job) -> Ask:
    """Where the training's processes go now. What has begun on GPUs does not go on without them: of a request that
    leaves them open, the run's folder keeps what the first attempt got.

    Raises:
        Unavailable: there is no room for them.
    """
    nodes, note = cluster.nodes(), Storage(Path(job.storage_root)).run(job.run_id).placing
    kept = json.loads(note.read_bytes()) if note.exists() else {"process_gpus": gpus_each(job.request, nodes)}
    request = job.request.model_copy(update=kept)
    if (ask := place(request, nodes)) is None:
        raise Unavailable(no_room(request, nodes))
    write_json(note, kept)
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
