"""The Ray launcher and a head that is starting, away or full: it hands the job over as soon as the head takes it."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import respx

from fm.agent.signs import began, seconds_lived
from fm.errors import DiskFull, Unauthorised
from fm.files import write_json
from fm.job import Reporter
from fm.launching import Handle, Life
from fm.layout import RunFolder, StageFolder
from fm.ray.cluster import RayCluster
from fm.ray.launcher import RayLauncher
from support.ray_jobs import write_job

HEAD = "http://127.0.0.1:8265"
JOB = f"{HEAD}/api/jobs/run-1-1"
STARTING = httpx.Response(500, text="No available agent to submit job, please try again later.")
NODE = {"node_id": "n", "state": "ALIVE", "resources_total": {"CPU": 2.0}}


class Head:
    """A head as the launcher sees it, at a time that the test sets."""

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        self.time = 0.0
        cluster = RayCluster.at(HEAD)
        cluster.now = lambda: self.time
        self.launcher = RayLauncher(cluster, now=cluster.now)
        self.handle: Handle = {}
        respx.get(f"{HEAD}/api/version").respond(json={"ray_version": "2.60.0"})
        self.jobs = respx.get(f"{HEAD}/api/jobs/").respond(json=[])
        self.nodes = respx.get(f"{HEAD}/api/v0/nodes").respond(json={"data": {"result": {"result": [NODE]}}})
        self.job = respx.get(JOB).respond(404)
        self.submit = respx.post(f"{HEAD}/api/jobs/").mock(side_effect=self.taken)

    def taken(self, _: httpx.Request) -> httpx.Response:
        """The answer of a head that takes the job."""
        self.job.respond(json={"status": "PENDING"})
        return httpx.Response(200, json={})

    def start(self, **request: Any) -> None:
        assert write_job(self.folder.path.parents[3], **request) == self.folder
        run = SimpleNamespace(id="run-1", caller=SimpleNamespace(env={"A": "1"}))
        self.handle = json.loads(json.dumps(self.launcher.start(cast(Any, run), self.folder, "train")))

    def look(self, seconds: float) -> list[Life]:
        """Polls for so long, five times a second."""
        found = []
        for _ in range(round(5 * seconds)):
            self.time += 0.2
            found.append(self.launcher.poll(self.handle).life)
        return found

    def warnings(self) -> list[str]:
        if not self.folder.events.exists():
            return []
        return [json.loads(line)["message"] for line in self.folder.events.read_text().splitlines()]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with respx.mock:
        yield Head(RunFolder(tmp_path / "runs" / "run-1").attempt(1))


def test_a_head_that_is_starting_is_asked_again_less_and_less_often_and_then_told_once(head: Head) -> None:
    head.submit.mock(side_effect=[STARTING] * 100)
    head.start()
    assert not head.submit.called
    assert set(head.look(60)) == {Life.ALIVE}
    assert head.submit.call_count == 5  # after 0, 2, 6, 14 and 30 seconds
    assert head.warnings() == [
        f"waits for the Ray cluster: the Ray cluster at {HEAD} answered 500 to /api/jobs/: "
        "No available agent to submit job, please try again later."
    ]
    head.submit.mock(side_effect=head.taken)
    head.look(5)
    sent = json.loads(head.submit.calls.last.request.content)
    assert sent["submission_id"] == "run-1-1"
    assert sent["runtime_env"]["env_vars"]["A"] == "1"
    count = head.submit.call_count
    head.job.respond(json={"status": "RUNNING"})
    assert set(head.look(60)) == {Life.ALIVE}
    assert head.submit.call_count == count


def test_a_run_waits_for_nodes_and_says_what_it_asks_for(head: Head) -> None:
    head.start(num_nodes=2)
    assert set(head.look(120)) == {Life.ALIVE}
    assert not head.submit.called
    assert [text[:93] for text in head.warnings()] == [
        "waits for the Ray cluster: the Ray cluster has no room for this run: it asks for 2 processes "
    ]
    head.nodes.respond(json={"data": {"result": {"result": [NODE, {**NODE, "node_id": "m"}]}}})
    head.look(31)
    assert head.submit.call_count == 1


def test_a_head_that_forgot_a_job_that_had_not_begun_is_handed_it_again_and_one_that_had_ends_its_attempt(
    head: Head,
) -> None:
    head.start()
    head.look(10)
    head.job.mock(side_effect=httpx.ConnectError("away"))
    assert set(head.look(700)) == {Life.ALIVE}
    head.job.mock(side_effect=None, return_value=httpx.Response(404))
    head.look(31)
    assert head.submit.call_count == 2
    head.job.respond(404)
    head.folder.log.touch()
    assert head.look(30)[-1] is Life.EXITED
    assert head.submit.call_count == 2


def test_a_run_that_is_cancelled_while_it_waits_has_ended(head: Head) -> None:
    head.submit.mock(side_effect=[STARTING] * 100)
    head.start()
    head.look(10)
    respx.post(f"{JOB}/stop").respond(404)
    head.launcher.signal(head.handle, "stop")
    assert head.look(1)[-1] is Life.EXITED


def test_a_token_that_is_refused_is_not_waited_for(head: Head) -> None:
    head.job.respond(401)
    head.start()
    with pytest.raises(Unauthorised):
        head.look(1)


def test_a_token_that_is_refused_or_can_not_be_read_ends_no_training_and_is_read_anew(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("new")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    head.start()
    head.look(1)
    head.folder.log.touch()
    head.job.respond(401)
    assert set(head.look(10)) == {Life.ALIVE}
    token.rename(tmp_path / "away")
    assert set(head.look(5)) == {Life.ALIVE}
    head.launcher.signal(head.handle, "kill")  # its workers read the order, whoever can't be asked to end them
    assert head.folder.order.read_text() == "kill"
    (tmp_path / "away").rename(token)
    head.job.respond(json={"status": "RUNNING"})
    head.look(5)
    assert head.job.calls.last.request.headers["Authorization"] == "Bearer new"


def test_a_head_that_can_not_be_reached_is_left_alone_for_a_while_by_all_runs(head: Head) -> None:
    head.job.mock(side_effect=httpx.ConnectError("away"))
    others = respx.get(url__startswith=f"{HEAD}/api/jobs/run-").mock(side_effect=httpx.ConnectError("away"))
    head.start()
    more = [{**head.handle, "job": f"run-{number}-1"} for number in range(2, 17)]
    for _ in range(300):
        head.time += 0.2
        for handle in (head.handle, *more):
            assert head.launcher.poll(handle).life is Life.ALIVE
    assert head.job.call_count + others.call_count <= 7  # in a minute; each lasts as long as a connection's timeout
    assert head.warnings()[0].startswith(f"waits for the Ray cluster: the Ray cluster at {HEAD} can't be reached")


def test_a_job_that_ray_had_no_room_to_start_is_handed_over_again(head: Head) -> None:
    head.start()
    head.look(2)
    head.job.respond(json={"status": "PENDING", "message": "It may be waiting for resources"})
    assert set(head.look(40)) == {Life.ALIVE}
    assert head.warnings() == ["waits for the Ray cluster: It may be waiting for resources"]
    head.job.respond(json={"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "message": "late"})

    def forgotten(_: httpx.Request) -> httpx.Response:
        head.job.respond(404)
        return httpx.Response(200, json={})

    respx.delete(JOB).mock(side_effect=forgotten)
    assert set(head.look(10)) == {Life.ALIVE}
    assert head.submit.call_count == 2


def test_a_late_job_that_ray_does_not_forget_yet_is_waited_for(head: Head) -> None:
    head.start()
    head.look(2)
    head.job.respond(json={"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "message": "late"})
    forget = respx.delete(JOB).mock(return_value=STARTING)
    assert set(head.look(10)) == {Life.ALIVE}
    assert forget.call_count > 1


def test_a_full_disk_does_not_keep_a_job_from_being_ended(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    head.start()
    head.look(2)
    stop = respx.post(f"{JOB}/stop").respond(json={})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull):
        head.launcher.signal(head.handle, "kill")
    assert stop.called


def test_what_began_on_gpus_does_not_go_on_without_them(head: Head) -> None:
    gpu = {**NODE, "resources_total": {"CPU": 2.0, "GPU": 1.0}}
    head.nodes.respond(json={"data": {"result": {"result": [NODE, gpu]}}})
    head.start()
    head.look(1)
    assert '{"CPU": 1.0, "GPU": 1.0}' in json.loads(head.submit.calls.last.request.content)["entrypoint"]
    head.nodes.respond(json={"data": {"result": {"result": [NODE]}}})
    head.job.respond(404)  # the head was started anew
    head.look(60)
    assert head.submit.call_count == 1
    assert "asks for 1 process with 1 CPU, 1 GPU each" in head.warnings()[-1]


def test_an_older_attempts_job_is_stopped_before_the_next_is_handed_over(head: Head) -> None:
    head.jobs.respond(json=[{"submission_id": "run-1-0", "status": "RUNNING"}])
    stop = respx.post(f"{HEAD}/api/jobs/run-1-0/stop").mock(return_value=STARTING)
    head.start()
    head.look(1)
    assert stop.called and not head.submit.called
    stop.respond(json={})
    head.look(5)
    assert head.submit.called


def test_waiting_for_a_place_is_no_training_time(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    started = datetime.now(UTC) - timedelta(hours=2)
    waiting = Reporter(folder)
    waiting.pause("waiting", 60)
    assert seconds_lived(folder, started) == 0.0
    began_at = datetime.now(UTC) - timedelta(minutes=1)
    write_json(folder.process, {"pid": 1, "started": 0.0, "host": "n", "began": began_at.timestamp()})
    waiting.pause("loading", 60)
    assert 55 < seconds_lived(folder, started) < 65
    assert abs(began(folder, started) - began_at) < timedelta(seconds=1)
    waiting.close()
