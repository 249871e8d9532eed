"""A Ray cluster as its dashboard's HTTP interface shows it: jobs, nodes, version. The one place that speaks to Ray."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from fm.errors import RequestError, Unauthorised, Unavailable, Unsupported

_OLDEST = (2, 52)
"""Ray Train v2, jobs with exit codes, and tokens."""
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_TAKING = httpx.Timeout(30.0, connect=5.0)
"""For what the cluster has to do something: to take a job, to end one."""
_START = "`ray start --head --dashboard-host …` prints the address"
_CHECK = f"check FM_RAY_ADDRESS and that the cluster's head runs; {_START}"
ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
"""Statuses of a job that will not change any more."""
NO_ENVIRONMENT = "RUNTIME_ENV_SETUP_FAILURE"
"""The error of a job whose runtime environment could not be made."""
NOT_STARTED = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
"""The error of a job for whose own process the cluster had no room for long; by default a quarter of an hour."""

_AWAY = 10.0
"""Seconds for which a cluster that can't be reached is not asked again: to find out takes as many, in which an agent
does nothing for its other runs."""


@dataclass(frozen=True, slots=True)
class Node:
    """A living node: what it has in all, by Ray's names: ``CPU``, ``GPU``, ``memory`` (bytes) and the like."""

    id: str
    resources: dict[str, float]


@dataclass(frozen=True, slots=True)
class RayJob:
    """What Ray knows of a job."""

    status: str
    exit_code: int | None = None
    """Of the entry point, if it ended by itself; negative for a signal."""
    message: str = ""
    error: str = ""
    """Ray's name for what went wrong, such as `NO_ENVIRONMENT`."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(slots=True)
class RayCluster:
    """A cluster's dashboard at `address`, as in ``http://head:8265``."""

    address: str
    token: str = field(default="", repr=False)
    now: Callable[[], float] = field(default=time.monotonic, repr=False)
    """A clock in seconds."""
    _client: httpx.Client | None = field(default=None, repr=False)
    _away: tuple[float, str] = field(default=(float("-inf"), ""), repr=False)
    """Until when it is left alone, and what was wrong."""

    @classmethod
    def of_environment(cls) -> Self:
        """The cluster that FM_RAY_ADDRESS names, with the token that Ray's own tools would use.

        Raises:
            RequestError: FM_RAY_ADDRESS is not set, or is no HTTP address.
        """
        address = os.environ.get("FM_RAY_ADDRESS", "").strip()
        if not address:
            raise RequestError(
                "launcher 'ray' needs a Ray cluster, and FM_RAY_ADDRESS is not set",
                field="FM_RAY_ADDRESS",
                hint=f"set it to the dashboard's address, as in http://head:8265; {_START}",
            )
        return cls.at(address)

    @classmethod
    def at(cls, address: str) -> Self:
        """The cluster at `address`.

        Raises:
            RequestError: it is no HTTP address.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(
                f"FM_RAY_ADDRESS is {address!r}, which is no HTTP address",
                field="FM_RAY_ADDRESS",
                hint=f"write http://head:8265, the address of Ray's dashboard; {_START}",
            )
        return cls(address.rstrip("/"), _token())

    def check_version(self) -> None:
        """Makes sure that it is a Ray cluster, of a version that can do what is asked of it.

        Raises:
            Unavailable: nobody answers, or not Ray.
            Unauthorised: the token is missing or wrong.
            Unsupported: its Ray is too old.
        """
        version = str(self._ask("GET", "/api/version").get("ray_version", ""))
        if not (found := re.match(r"(\d+)\.(\d+)", version)):
            raise self._not_ray()
        if (int(found[1]), int(found[2])) < _OLDEST:
            raise Unsupported(
                f"the cluster at {self.address} runs Ray {version}",
                field="launcher",
                hint=f"Ray {'.'.join(map(str, _OLDEST))} or newer is needed on all of its nodes",
            )

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        answer = self._ask("GET", "/api/v0/nodes", params={"detail": "true", "limit": "10000"})
        try:
            listed = answer["data"]["result"]["result"]
            return [Node(node["node_id"], node["resources_total"]) for node in listed if node["state"] == "ALIVE"]
        except (KeyError, TypeError) as error:
            raise self._not_ray() from error

    def job(self, job_id: str) -> RayJob | None:
        """What Ray knows of the job; None if it knows of none, as after its head was started anew."""
        answer = self._ask("GET", f"/api/jobs/{quote(job_id)}", missing={})
        if not answer:
            return None
        return RayJob(
            status=str(answer.get("status")),
            exit_code=answer.get("driver_exit_code"),
            message=str(answer.get("message") or ""),
            error=str(answer.get("error_type") or ""),
        )

    def unfinished(self, prefix: str) -> list[str]:
        """The ids of the jobs that begin with `prefix` and have not ended."""
        jobs = self._ask("GET", "/api/jobs/")
        ids = [str(job.get("submission_id") or "") for job in jobs if job.get("status") not in ENDED]
        return [job_id for job_id in ids if job_id.startswith(prefix)]

    def submit(self, job_id: str, entrypoint: str, environment: dict[str, Any], *, cpus: float) -> None:
        """Has the cluster run `entrypoint`, a shell's command line, under the name `job_id`, which no job may bear."""
        job = {"submission_id": job_id, "entrypoint": entrypoint, "runtime_env": environment}
        self._ask("POST", "/api/jobs/", json=job | {"entrypoint_num_cpus": cpus})

    def stop(self, job_id: str) -> None:
        """Ends the job with all its workers; nothing if Ray knows of none."""
        self._ask("POST", f"/api/jobs/{quote(job_id)}/stop", missing={})

    def forget(self, job_id: str) -> None:
        """Removes an ended job, so that another may bear its name."""
        self._ask("DELETE", f"/api/jobs/{quote(job_id)}", missing={})

    def logs(self, job_id: str) -> str:
        """What the job's entry point has printed."""
        return str(self._ask("GET", f"/api/jobs/{quote(job_id)}/logs", missing={}).get("logs", ""))

    def _ask(self, method: str, path: str, *, missing: Any = None, **more: Any) -> Any:
        until, why = self._away
        if self.now() < until:
            raise Unavailable(why, hint=_CHECK)
        if self._client is None:
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            self._client = httpx.Client(base_url=self.address, headers=headers)
        try:
            answer = self._client.request(method, path, timeout=_TIMEOUT if method == "GET" else _TAKING, **more)
        except httpx.HTTPError as error:
            why = f"the Ray cluster at {self.address} can't be reached: {error or type(error).__name__}"
            self._away = (self.now() + _AWAY, why)
            raise Unavailable(why, hint=_CHECK) from error
        if answer.status_code in (401, 403):
            raise Unauthorised(
                f"the Ray cluster at {self.address} {'needs a token' if not self.token else 'refuses this token'}",
                hint="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, to the token that the cluster "
                "was started with; Ray's own ~/.ray/auth_token is used too",
            )
        if answer.status_code == 404 and missing is not None:
            return missing
        if answer.is_error:
            lines = [line for line in answer.text.splitlines() if line.strip()]
            said = lines[-1].strip()[:500] if lines else answer.reason_phrase
            raise Unavailable(f"the Ray cluster at {self.address} answered {answer.status_code} to {path}: {said}")
        try:
            return answer.json()
        except ValueError:
            raise self._not_ray() from None

    def _not_ray(self) -> Unavailable:
        return Unavailable(
            f"what answers at {self.address} is not the dashboard of a Ray cluster",
            hint=f"see FM_RAY_ADDRESS; {_START}",
        )


def _token() -> str:
    """The token as Ray finds it itself."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip()
    except OSError as error:
        if named:
            raise RequestError(
                f"RAY_AUTH_TOKEN_PATH is {named}, which can't be read: {error.strerror}", field="RAY_AUTH_TOKEN_PATH"
            ) from error
        return ""
