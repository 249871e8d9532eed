"""What an agent makes of a store, a machine or a trainer that gives way; over a scripted launcher."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from fm.agent import outbox, processes
from fm.agent.ingest import Cursor, read_news
from fm.agent.signs import SILENCE
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.errors import DiskFull, StoreError
from fm.files import make_private, seal
from fm.filestore import FolderStore
from fm.job import EXIT_DISK_FULL, EXIT_FAILED, Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder, Storage
from fm.lifecycle import EventType, Fault, Status
from fm.store.leases import Lease
from fm.types import Event, RunRecord
from support.bench import Bench
from support.stores import moment

CANCEL = Event(type=EventType.CANCEL_REQUESTED, time=moment(), message="enough")
WARNING = {"type": "WARNING", "time": "2026-01-01T00:00:00+00:00", "message": "m"}


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def refuse(monkeypatch: pytest.MonkeyPatch, bench: Bench, error: Exception, when: Callable[[Any], bool]) -> None:
    """The store takes nothing of what `when` is true of."""
    save = bench.store.save

    def save_or_refuse(lease: Lease, **what: Any) -> RunRecord:
        if when(what):
            raise error
        return save(lease, **what)

    monkeypatch.setattr(bench.store, "save", save_or_refuse)


@pytest.mark.parametrize("error", [StoreError("locked"), DiskFull("no space left for the run store")])
def test_what_the_store_could_not_take_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench, calls = Bench(tmp_path), count()
    record = bench.create()
    refuse(monkeypatch, bench, error, lambda what: what.get("new_metrics") and next(calls) % 2 == 0)
    run = bench.finish(record)
    assert (run.status, run.attempt) == (Status.COMPLETED, 1)
    assert [row.step for row in bench.store.metrics(record.id, None, -1, 100)] == list(range(1, 11))


def test_a_process_whose_start_the_store_could_not_take_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, noted = list[Stage](), set[Stage]()

    class Counts(ScriptedLauncher):
        def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
            started.append(stage)
            return super().start(run, folder, stage)

    bench = Bench(tmp_path, Counts(Script(), SimulatedClock()))

    def is_first_note_of_a_start(what: Any) -> bool:
        work = what.get("work") or {"handle": None}
        if work["handle"] is None or work["stage"] in noted:
            return False
        noted.add(work["stage"])
        return True

    record = bench.create()
    refuse(monkeypatch, bench, StoreError("locked"), is_first_note_of_a_start)
    run = bench.finish(record)
    assert (run.status, run.attempt, noted) == (Status.COMPLETED, 1, {"check", "train"})
    assert started == ["check", "train"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("a bug"), KeyError("step")])
def test_an_error_in_one_run_fails_it_and_leaves_the_others_alone(tmp_path: Path, error: Exception) -> None:
    class Breaks(ScriptedLauncher):
        killed = 0

        def poll(self, handle: Handle) -> Poll:
            if handle["kind"] == "train" and handle["stage"] == 2:
                raise error
            return super().poll(handle)

        def signal(self, _handle: Handle, how: str) -> None:
            self.killed += how == "kill"

    launcher = Breaks(Script(), SimulatedClock())
    bench = Bench(tmp_path, launcher)
    first, second = bench.create(), bench.create()
    failed = bench.finish(first)
    assert failed.status is Status.FAILED and type(error).__name__ in failed.reason
    assert failed.fault is (Fault.INFRASTRUCTURE if isinstance(error, OSError) else Fault.INTERNAL)
    assert launcher.killed == 1
    assert bench.finish(second).status is Status.COMPLETED


def test_a_process_that_can_not_be_ended_ends_no_agent(tmp_path: Path) -> None:
    class Unkillable(ScriptedLauncher):
        def poll(self, handle: Handle) -> Poll:
            if handle["kind"] == "train" and handle["stage"] == 2:
                raise ValueError("a bug")
            return super().poll(handle)

        def signal(self, _handle: Handle, _how: str) -> None:
            raise DiskFull("no space left for the order")

    bench = Bench(tmp_path, Unkillable(Script(), SimulatedClock()))
    first, second = bench.create(), bench.create()
    assert bench.finish(first).fault is Fault.INTERNAL
    assert bench.finish(second).status is Status.COMPLETED


def test_a_network_disk_that_is_away_for_a_moment_fails_no_run(tmp_path: Path) -> None:
    class Away(ScriptedLauncher):
        polls = 0

        def poll(self, handle: Handle) -> Poll:
            self.polls += 1
            if self.polls % 3 == 0:
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().poll(handle)

    bench = Bench(tmp_path, Away(Script(), SimulatedClock()))
    run = bench.finish(bench.create())
    assert (run.status, run.attempt) == (Status.COMPLETED, 1)


def test_a_disk_that_refuses_a_copy_of_a_checkpoint_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, store = Storage(tmp_path / "here"), FolderStore(make_private(tmp_path / "there"))
    attempt = storage.run("run-1").attempt(1)
    seal(make_private(attempt.checkpoint(5)))
    copy, refusals = outbox.copy_sealed, iter([OSError(errno.EIO, "Input/output error")])

    def refuse_once(*paths: Path) -> None:
        if error := next(refusals, None):
            raise error
        copy(*paths)

    monkeypatch.setattr(outbox, "copy_sealed", refuse_once)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.0)
    box = outbox.Outbox(store, storage, attempt)
    give_up = time.monotonic() + 20
    while not box.settle():
        assert time.monotonic() < give_up
    assert store.list(storage.key(attempt.checkpoints))


def test_an_event_that_can_not_be_applied_fails_the_run_and_not_the_agent(tmp_path: Path) -> None:
    class Strange(ScriptedLauncher):
        def poll(self, handle: Handle) -> Poll:
            if handle["kind"] == "train":
                for file in tmp_path.rglob("attempts/1/events.jsonl"):
                    file.write_bytes(file.read_bytes() + lines({**WARNING, "type": "CHECKPOINT_SAVED"}))
            return super().poll(handle)

    bench = Bench(tmp_path, Strange(Script(), SimulatedClock()))
    assert bench.finish(bench.create()).fault is Fault.INTERNAL


def test_a_second_check_is_heard_as_well_as_the_first(tmp_path: Path) -> None:
    class TwoChecks(ScriptedLauncher):
        checks = 0

        def start(self, _run: RunRecord, folder: StageFolder, _stage: Stage) -> Handle:
            self.checks += 1
            folder.events.write_bytes(
                lines(WARNING) if self.checks == 1 else lines({**WARNING, "type": "CHECK_FAILED", "message": "bad row"})
            )
            return {"code": EXIT_DISK_FULL if self.checks == 1 else EXIT_FAILED}

        def poll(self, handle: Handle) -> Poll:
            return Poll(Life.EXITED, handle["code"])

    bench = Bench(tmp_path, TwoChecks(Script(), SimulatedClock()))
    run = bench.finish(bench.create())
    assert (run.status, run.reason) == (Status.FAILED, "bad row")


def test_a_process_of_a_host_that_is_gone_is_given_up_after_a_long_silence(tmp_path: Path) -> None:
    class Elsewhere(ScriptedLauncher):
        gone = False

        def poll(self, handle: Handle) -> Poll:
            return Poll(Life.UNKNOWN) if self.gone and handle["stage"] == 2 else super().poll(handle)

    launcher = Elsewhere(Script(holds_at=4), SimulatedClock())
    bench = Bench(tmp_path, launcher)
    record = bench.create()
    bench.step(record, lambda run: run.step >= 3)
    launcher.gone = True
    began = bench.clock.now()
    bench.agent = bench.new_agent("new-name")
    launcher.script = Script()
    bench.clock.sleep(60)
    bench.agent.adopt()
    run = bench.step(record, lambda run: run.attempt == 2, limit=1000)
    assert bench.clock.now() - began > SILENCE
    assert (bench.finish(run).status, run.fruitless) == (Status.COMPLETED, 0)


def test_a_training_that_stands_still_is_ended_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path, script=Script(stalls_at=8, save_every=5))
    record = bench.create()
    bench.step(record, lambda run: run.step >= 7)
    began = bench.clock.now()
    run = bench.step(record, lambda run: run.attempt == 2, limit=4000)
    assert timedelta(minutes=5) < bench.clock.now() - began < timedelta(minutes=31)
    [reason] = [event.message for event in bench.store.events(record.id, 0, 1000) if event.type is EventType.REQUEUED]
    assert "it stood still at step 7" in reason and "its last checkpoint is of step 5" in reason
    assert bench.finish(run).status is Status.COMPLETED


def test_a_training_whose_steps_are_slow_is_left_alone(tmp_path: Path) -> None:
    class Slow(ScriptedLauncher):
        """Each step takes four minutes."""

        polls = 0

        def poll(self, handle: Handle) -> Poll:
            self.polls += 1
            return super().poll(handle) if self.polls % 240 == 0 else Poll(Life.ALIVE)

    bench = Bench(tmp_path, Slow(Script(), SimulatedClock()))
    run = bench.step(bench.create(), lambda run: run.status.is_terminal(), limit=10_000)
    assert (run.status, run.attempt) == (Status.COMPLETED, 1)


def test_a_training_that_finished_where_it_can_not_be_asked_is_registered_at_once(tmp_path: Path) -> None:
    class Renamed(ScriptedLauncher):
        def poll(self, handle: Handle) -> Poll:
            poll = super().poll(handle)
            return Poll(Life.UNKNOWN) if handle["kind"] == "train" else poll

    bench = Bench(tmp_path, Renamed(Script(), SimulatedClock()))
    assert bench.finish(bench.create()).status is Status.COMPLETED


def test_a_line_longer_than_a_page_is_read(tmp_path: Path) -> None:
    folder = StageFolder(make_private(tmp_path / "stage"))
    folder.events.write_bytes(lines({**WARNING, "data": {"samples": "x" * (5 << 20)}}, WARNING))
    news = read_news(folder, 1, Cursor())
    rest = read_news(folder, 1, news.cursor)
    assert [event.line for event in [*news.events, *rest.events]] == [1, 2]


def test_figures_that_are_none_are_passed_over(tmp_path: Path) -> None:
    folder = StageFolder(make_private(tmp_path / "stage"))
    good = {"step": 1, "time": "2026-01-01T00:00:00+00:00", "values": {"loss": 1.0, "norm": float("nan")}}
    folder.metrics.write_bytes(lines({"step": "x"}, {**good, "values": {"loss": "?"}}, good) + b"[" * 100_000 + b"\n")
    assert [row.values for row in read_news(folder, 1, Cursor()).metrics] == [{"loss": 1.0}]


def test_a_message_with_half_a_surrogate_can_be_stored(tmp_path: Path) -> None:
    folder = StageFolder(make_private(tmp_path / "stage"))
    folder.events.write_bytes(lines({**WARNING, "message": "no file \udcff.jsonl ü", "data": {"path": "\udcff"}}))
    (event,) = read_news(folder, 1, Cursor()).events
    assert "no file ?.jsonl ü" in event.model_dump_json()


def test_a_kill_reaches_children_that_lead_sessions_of_their_own() -> None:
    # torchrun gives each of its processes a session.
    code = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True).pid,"
        " flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    processes.send(processes.identify(parent.pid), "kill")
    assert parent.wait(10) == -signal.SIGKILL
    assert psutil.wait_procs([child], timeout=10)[1] == [] or child.status() == psutil.STATUS_ZOMBIE
    parent.stdout.close()
