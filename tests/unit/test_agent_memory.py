"""What an agent makes of a process that died while its machine was out of memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fm.agent import worker
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.job import Job
from fm.launching import Handle, Life, Poll
from fm.lifecycle import Fault, Status
from support.bench import Bench, Exits
from support.stores import moment


class Starved(Exits):
    """Whatever exits at once was ended for want of memory: at its last poll, the machine has ended one more."""

    kills = 7

    def poll(self, handle: Handle) -> Poll:
        self.kills += "exits" in handle
        return super().poll(handle)


def test_trainings_that_die_for_want_of_memory_do_less_at_once_and_end_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Starved(-9, None, 1)
    monkeypatch.setattr(worker, "kills_for_memory", lambda: launcher.kills)
    bench = Bench(tmp_path, launcher)
    run = bench.finish(bench.create(method="lora"))
    assert (run.status, run.fault, run.attempt) == (Status.FAILED, Fault.USER, 3)
    assert "exit code 1, while the machine was out of memory" in run.reason
    assert "try, in this order: method='qlora', a shorter" in run.reason
    folder = bench.storage.run(run.id)
    assert [Job.read(folder.attempt(number)).starved for number in (1, 2, 3)] == [0, 1, 2]


def test_a_machine_that_once_was_out_of_memory_has_nothing_to_do_with_a_later_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "kills_for_memory", lambda: 7)
    bench = Bench(tmp_path, Exits(-9, -9, -9))
    run = bench.finish(bench.create())
    assert (run.fault, run.starved) == (Fault.INFRASTRUCTURE, 0)
    assert "memory" not in run.reason


def test_a_check_that_dies_for_want_of_memory_says_nothing_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(ScriptedLauncher):
        left = 1

        def poll(self, handle: Handle) -> Poll:
            if handle["kind"] == "check" and self.left:
                self.left -= 1
                return Poll(Life.EXITED, -9)
            return super().poll(handle)

    monkeypatch.setattr(worker, "kills_for_memory", itertools.count().__next__)
    bench = Bench(tmp_path, Dies(Script(), SimulatedClock(moment())))
    run = bench.finish(bench.create())
    assert (run.status, run.starved) == (Status.COMPLETED, 0)
