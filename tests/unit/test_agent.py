"""The agent over a scripted launcher: the real store, the real files, no processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.agent.ingest import Cursor, read_news
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.errors import DiskFull, MissingExtra
from fm.files import make_private
from fm.job import EXIT_DISK_FULL, EXIT_STOPPED, Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder
from fm.lifecycle import EventType, Fault, Status
from fm.types import Event, RunRecord
from support.bench import WHO, Bench, Exits
from support.stores import moment


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_killed_training_is_started_again_from_its_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=Script(dies_at=(7,)))
    run = bench.finish(bench.create())
    assert (run.status, run.attempt, run.fruitless) == (Status.COMPLETED, 2, 0)
    starts = [e.data["step"] for e in bench.store.events(run.id, 0, 1000) if e.type is EventType.TRAIN_STARTED]
    assert starts == [0, 5]


def test_three_attempts_without_progress_end_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Exits(-9, -9, None, -9))
    run = bench.finish(bench.create())
    assert (run.status, run.fault, run.attempt) == (Status.FAILED, Fault.INFRASTRUCTURE, 3)
    assert "3 attempts in a row" in run.reason


def test_progress_resets_the_count_of_fruitless_attempts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=Script(steps=30, dies_at=(2, 3, 7, 12, 17, 22), save_every=5))
    run = bench.finish(bench.create())
    assert (run.status, run.attempt) == (Status.COMPLETED, 7)


def test_a_failure_of_the_users_making_is_not_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=Script(fails_at=3, failure="the loss is not finite"))
    run = bench.finish(bench.create())
    assert (run.status, run.fault, run.attempt, run.reason) == (
        Status.FAILED, Fault.USER, 1, "the loss is not finite",
    )  # fmt: skip


def test_a_stop_from_outside_counts_as_no_attempt(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Exits(*[EXIT_STOPPED] * 5))
    run = bench.finish(bench.create())
    assert (run.status, run.attempt, run.fruitless) == (Status.COMPLETED, 6, 0)


def test_a_full_disk_puts_the_run_back_with_its_reason_until_there_is_space(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Exits(*[EXIT_DISK_FULL] * 4))
    run = bench.step(bench.create(), lambda run: run.attempt == 1 and run.status is Status.QUEUED)
    assert "disk is full" in run.reason
    assert bench.finish(run).status is Status.COMPLETED


def test_a_disk_that_is_full_when_a_stage_starts_is_no_different(tmp_path: Path) -> None:
    class Full(ScriptedLauncher):
        left = 2

        def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
            if self.left:
                self.left -= 1
                raise DiskFull("no space left while writing log.txt")
            return super().start(run, folder, stage)

    bench = Bench(tmp_path, Full(Script(), SimulatedClock()))
    assert bench.finish(bench.create()).status is Status.COMPLETED


@pytest.mark.parametrize("steps", range(1, 18))
def test_an_agent_that_dies_at_any_point_is_followed_by_one_that_finishes(tmp_path: Path, steps: int) -> None:
    bench = Bench(tmp_path)
    record = bench.create()
    for _ in range(steps):
        bench.clock.sleep(1)
        bench.agent.step()
    bench.agent = bench.new_agent()
    bench.agent.adopt()
    run = bench.finish(record)
    kinds = bench.kinds(record)
    assert (run.status, run.attempt, run.registered_model) == (Status.COMPLETED, 1, "a.b.c/1")
    assert kinds.count(EventType.TRAIN_STARTED) == kinds.count(EventType.COMPLETED) == 1
    assert len(bench.store.metrics(record.id, None, -1, 100)) == 10


def test_an_agent_that_dies_while_it_starts_a_training_leaves_no_run_behind(tmp_path: Path) -> None:
    class Dies(ScriptedLauncher):
        died = False

        def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
            if stage == "train" and not self.died:
                self.died = True
                raise KeyboardInterrupt
            return super().start(run, folder, stage)

    bench = Bench(tmp_path, Dies(Script(), SimulatedClock()))
    record = bench.create()
    with pytest.raises(KeyboardInterrupt):
        bench.finish(record)
    bench.agent = bench.new_agent()
    bench.agent.adopt()
    run = bench.finish(record)
    assert (run.status, run.fruitless) == (Status.COMPLETED, 0)
    assert "died while starting" in " ".join(e.message for e in bench.store.events(record.id, 0, 100))


def test_two_agents_never_own_one_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.create()
    sleeper = bench.agent
    bench.step(record, lambda run: run.step >= 2)
    bench.clock.sleep(60)
    bench.agent = bench.new_agent("elsewhere")
    bench.agent.adopt()
    for _ in range(5):
        bench.clock.sleep(10)
        sleeper.step()
        bench.agent.step()
    assert not sleeper.busy
    assert bench.finish(record).status is Status.COMPLETED
    assert bench.kinds(record).count(EventType.COMPLETED) == 1


@pytest.mark.parametrize("steps", range(8))
def test_a_cancel_at_any_point_stops_the_run_and_nothing_is_registered(tmp_path: Path, steps: int) -> None:
    bench = Bench(tmp_path)
    record = bench.create()
    for _ in range(steps):
        bench.clock.sleep(1)
        bench.agent.step()
    bench.store.cancel(WHO, record.id, Event(type=EventType.CANCEL_REQUESTED, time=moment(), message="enough"))
    run = bench.finish(record)
    assert run.status is Status.STOPPED
    assert list(bench.store.models("local", None, 10)) == []


def test_a_training_that_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    class Deaf(ScriptedLauncher):
        def signal(self, handle: Handle, how: str) -> None:  # type: ignore[override]
            if how == "kill":
                super().signal(handle, "kill")

    bench = Bench(tmp_path, Deaf(Script(holds_at=4), SimulatedClock()))
    record = bench.create()
    bench.step(record, lambda run: run.step >= 3)
    bench.store.cancel(WHO, record.id, Event(type=EventType.CANCEL_REQUESTED, time=moment(), message="enough"))
    assert bench.finish(record).status is Status.STOPPED


def test_a_run_whose_launcher_is_gone_fails_with_the_reason(bench: Bench) -> None:
    def broken(_name: str) -> ScriptedLauncher:
        raise MissingExtra("launcher 'process' needs torch, not installed here", extra="local")

    bench.agent = Agent(bench.store, bench.storage, broken, Devices(()), "here")
    run = bench.finish(bench.create())
    assert run.status is Status.FAILED and "torch" in run.reason


def test_weights_that_are_damaged_are_not_registered(tmp_path: Path) -> None:
    class Damages(ScriptedLauncher):
        def poll(self, handle: Handle) -> Poll:
            poll = super().poll(handle)
            if poll.life is Life.EXITED and handle["kind"] == "train":
                for file in tmp_path.rglob("final/*.safetensors"):
                    file.write_bytes(b"bad")
            return poll

    bench = Bench(tmp_path, Damages(Script(), SimulatedClock()))
    run = bench.finish(bench.create())
    assert run.status is Status.FAILED
    assert list(bench.store.models("local", None, 10)) == []


def test_gpus_are_shared_out_and_a_machine_without_runs_one_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.create(), bench.create()
    for _ in range(3):
        bench.agent.step()
    assert bench.run(first).status is not Status.QUEUED
    assert bench.run(second).status is Status.QUEUED

    gpus = Bench(tmp_path / "gpus")
    gpus.agent = gpus.new_agent(devices=(0, 1, 2))
    runs = [gpus.create(num_processes=2), gpus.create(), gpus.create()]
    gpus.agent.step()
    assert [gpus.run(run).status is Status.QUEUED for run in runs] == [False, False, True]
    for run in runs:
        gpus.finish(run)


def test_a_partial_last_line_is_not_read_before_it_is_whole(tmp_path: Path) -> None:
    folder = StageFolder(make_private(tmp_path / "stage"))
    line = b'{"type": "WARNING", "time": "2026-01-01T00:00:00+00:00", "message": "m"}\n'
    folder.events.write_bytes(line + line[:30])
    news = read_news(folder, 1, Cursor())
    assert [event.line for event in news.events] == [1]
    folder.events.write_bytes(line + line)
    assert [event.line for event in read_news(folder, 1, news.cursor).events] == [2]


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    folder = StageFolder(make_private(tmp_path / "stage"))
    good = b'{"type": "WARNING", "time": "2026-01-01T00:00:00+00:00", "message": "m"}\n'
    folder.events.write_bytes(b"\n{broken\n[1]\n\xff\xfe\n" + good + b'{"type": "WARNING"}\n')
    folder.metrics.write_bytes(b"nonsense\n")
    news = read_news(folder, 1, Cursor())
    assert [event.line for event in news.events] == [5]
    assert news.cursor.lines == 6


def test_one_endless_line_of_log_does_not_stop_the_reading(tmp_path: Path) -> None:
    folder = StageFolder(make_private(tmp_path / "stage"))
    folder.log.write_bytes(b"x" * (3 << 20))
    cursor, total = Cursor(), 0
    while (news := read_news(folder, 1, cursor)).cursor != cursor:
        cursor, total = news.cursor, total + len(news.log)
    assert total == 3 << 20


def test_a_script_is_a_value() -> None:
    assert replace(Script(), steps=3).steps == 3
