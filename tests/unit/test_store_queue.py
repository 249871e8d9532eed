"""Whose turn it is in the queue: priorities, limits of teams, and fairness between them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fm.backends.base import RunFilter
from fm.clock import SimulatedClock
from fm.lifecycle import EventType, Status
from fm.store import queue
from fm.store.leases import Lease
from fm.store.store import RunStore
from fm.types import Event, Principal, RunRecord
from support.bench import Bench
from support.stores import happened, moment, new_run

ROOT = Principal(user="root")


class Queue:
    """A store in which teams queue runs, one a second."""

    def __init__(self, url: str) -> None:
        self.clock = SimulatedClock(moment())
        self.store = RunStore(url, self.clock)
        self.admin = self.store.administration(ROOT)
        for team in ("red", "blue"):
            self.admin.add_team(team)
        self._count = 0

    def add(self, team: str, *, priority: int = 0, **request: object) -> RunRecord:
        self._count += 1
        self.clock.sleep(1)
        new = replace(new_run(**request), priority=priority)
        return self.store.create(new, str(self._count), Principal(user="ada", team=team))

    def claim(self, free: int = 8, total: int = 8) -> tuple[RunRecord, Lease] | None:
        self.clock.sleep(1)
        return self.store.claim("agent", "host", free=free, total=total)

    def claim_team(self) -> str:
        claimed = self.claim()
        return claimed[0].team if claimed else ""

    def end(self, lease: Lease) -> None:
        self.store.complete(lease, happened(EventType.COMPLETED), None)

    def reason(self, run: RunRecord) -> str:
        [listed] = [found for found in self.store.list(run.team, RunFilter()) if found.id == run.id]
        assert listed.reason == self.store.find(run.team, run.id).reason
        return listed.reason


@pytest.fixture
def line(store_url: str) -> Iterator[Queue]:
    line = Queue(store_url)
    yield line
    line.store.close()


def test_a_teams_runs_go_by_priority_and_then_by_age(line: Queue) -> None:
    runs = [line.add("red", priority=priority) for priority in (0, 5, -3, 5, 0)]
    order = [line.claim()[0].id for _ in runs]  # type: ignore[index]
    assert order == [runs[number].id for number in (1, 3, 0, 4, 2)]
    assert line.store.find("red", runs[1].id).priority == 5


def test_a_priority_does_not_overtake_another_team(line: Queue) -> None:
    line.add("red")
    line.add("red")
    line.add("blue", priority=100)
    assert [line.claim_team() for _ in range(3)] == ["red", "blue", "red"]


def test_a_team_that_queues_many_runs_keeps_nobody_waiting_but_itself(line: Queue) -> None:
    for _ in range(10):
        line.add("red")
    for _ in range(3):
        line.add("blue")
    order = []
    for _ in range(8):  # one machine, on which one run goes at a time
        run, lease = line.claim()  # type: ignore[misc]
        order.append(run.team)
        line.end(lease)
    assert order == ["red", "blue", "red", "blue", "red", "blue", "red", "red"]


def test_the_team_with_fewer_runs_going_is_next(line: Queue) -> None:
    for _ in range(4):
        line.add("red")
    assert [line.claim_team() for _ in range(2)] == ["red", "red"]
    for _ in range(3):
        line.add("blue")
    assert [line.claim_team() for _ in range(5)] == ["blue", "blue", "red", "blue", "red"]


def test_a_limit_of_running_runs_holds_and_is_said(line: Queue) -> None:
    line.admin.limit_team("red", max_running=2)
    runs = [line.add("red") for _ in range(3)]
    first = line.claim()
    assert first and line.claim()
    assert line.claim() is None
    assert line.reason(runs[2]) == "waits: 2 runs of team red are going, and no more than 2 may at once"
    assert line.reason(runs[0]) != line.reason(runs[2])
    line.add("blue")
    assert line.claim_team() == "blue"
    line.end(first[1])
    assert line.reason(runs[2]) == "waits for an agent"
    assert line.claim_team() == "red"


def test_a_limit_of_none_at_all_stops_a_team(line: Queue) -> None:
    line.admin.limit_team("red", max_running=0)
    line.add("red")
    assert line.claim() is None
    line.admin.limit_team("red", max_running=None)
    assert line.claim_team() == "red"


def test_many_agents_at_once_do_not_break_a_limit(line: Queue) -> None:
    line.admin.limit_team("red", max_running=3)
    for _ in range(12):
        line.add("red")
    line.add("blue")
    taken: list[str] = []
    lock = threading.Lock()

    def work(agent: int) -> None:
        while claimed := line.store.claim(f"agent-{agent}", f"host-{agent}", free=8, total=8):
            with lock:
                taken.append(claimed[0].team)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert Counter(taken) == {"red": 3, "blue": 1}


def test_a_team_beyond_its_quota_of_disk_waits_and_says_so(line: Queue) -> None:
    line.admin.limit_team("red", max_disk=1_500_000_000)
    first = line.add("red")
    _, lease = line.claim()  # type: ignore[misc]
    line.store.save(lease, disk_bytes=2 * 10**9)
    waiting = line.add("red")
    assert line.claim() is None
    assert line.reason(waiting).startswith("waits: team red uses 2 of its 1.5 GB of disk")
    line.end(lease)
    assert line.claim() is None
    line.store.remove(Principal(user="ada", team="red"), first.id)
    assert line.claim_team() == "red"


def test_models_and_data_sets_count_towards_the_quota(line: Queue) -> None:
    with line.store.database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO models (team, name, version, created_at, record, bytes) VALUES ('red', 'a.b.c', 1, 0, '', 7)"
        )
        connection.exec_driver_sql(
            "INSERT INTO datasets (team, digest, name, owner, bytes, sensitive, created_at) "
            "VALUES ('red', 'd', 'n', 'o', 5000000000, 0, 0)"
        )
        assert queue.disk_bytes(connection, "red") == 5000000007
        assert queue.disk_bytes(connection, "blue") == 0


def test_a_wide_run_keeps_its_turn_before_other_teams_too(line: Queue) -> None:
    line.add("red", num_processes=4)
    line.add("blue")
    assert line.claim(free=2, total=4) is None
    assert line.claim(free=2, total=2)[0].team == "blue"  # type: ignore[index]


def test_a_run_whose_time_has_not_come_keeps_no_other_team_waiting(line: Queue) -> None:
    line.add("red")
    run, lease = line.claim()  # type: ignore[misc]
    event = Event(type=EventType.REQUEUED, time=moment(), message="the disk is full")
    line.store.save(lease, new_events=[event], not_before=moment(1000))
    line.add("blue")
    assert line.claim_team() == "blue"
    assert line.claim() is None
    assert line.reason(run) == "the disk is full"
    line.clock.sleep(1000)
    assert line.claim_team() == "red"


def test_a_long_queue_costs_an_idle_agent_little(line: Queue) -> None:
    import time

    line.admin.limit_team("red", max_running=0)
    record = line.add("red").model_dump_json().replace("'", "''")
    with line.store.database.write() as connection:
        values = ", ".join(
            f"('run-{n}', 'n', 'red', 'ada', 'QUEUED', '', {n}.0, 'key-{n}', '{record}', 0, 0, 0, 0)"
            for n in range(20_000)
        ).replace(":", "\\:")
        from sqlalchemy import text

        connection.execute(text(
            "INSERT INTO runs (id, name, team, owner, status, experiment_id, created_at, idempotency_key, record, "
            f"last_seq, log_bytes, not_before, lease_epoch) VALUES {values}"
        ))
    started = time.perf_counter()
    for _ in range(10):
        assert line.claim() is None
    assert (time.perf_counter() - started) / 10 < 0.1


def test_an_agent_notes_what_a_runs_folder_holds(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.finish(bench.create())
    assert run.status is Status.COMPLETED
    with bench.store.database.read() as connection:
        used = queue.disk_bytes(connection, "local")
    weights = bench.store.model("local", "a.b.c").bytes
    held = sum(file.stat().st_size for file in bench.storage.run(run.id).path.rglob("*") if file.is_file())
    assert weights > 0
    assert used == weights + held
