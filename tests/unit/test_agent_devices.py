"""Which accelerators a run gets when agents, hosts and processes come and go; over a scripted launcher."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from fm.agent.agent import Agent
from fm.agent.devices import Devices
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.job import Stage
from fm.launching import Handle, Life, Poll
from fm.layout import StageFolder
from fm.lifecycle import EventType, Status
from fm.types import RunRecord
from support.bench import Bench


def test_a_run_that_is_adopted_before_it_began_gets_devices_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.create()
    assert bench.store.claim("agent-dead", "here", free=1, total=1)
    bench.agent = bench.new_agent(devices=(0, 1))
    bench.agent.adopt()
    bench.step(record, lambda run: run.attempt == 1)
    job = json.loads(bench.storage.run(record.id).attempt(1).job.read_bytes())
    assert len(job["devices"]) == 1


class OfHosts(ScriptedLauncher):
    """Its processes are on hosts, of which it sees one."""

    def __init__(self, script: Script, host: str) -> None:
        super().__init__(script, SimulatedClock())
        self.host = host

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        return {**super().start(run, folder, stage), "host": self.host}


@pytest.mark.parametrize(("host", "begun"), [("far", 2), (socket.gethostname(), 1)])
def test_devices_of_an_adopted_run_are_those_of_this_host_or_none(
    tmp_path: Path, host: str, begun: int
) -> None:
    launcher = OfHosts(Script(holds_at=4), host)
    bench = Bench(tmp_path, launcher)
    bench.agent = bench.new_agent(devices=(0, 1))
    far = bench.create()
    bench.step(far, lambda run: run.step >= 3)
    bench.agent = bench.new_agent("here-anew", devices=(0, 1))
    launcher.host = socket.gethostname()
    bench.clock.sleep(60)
    bench.agent.adopt()
    runs = [bench.create() for _ in range(2)]
    for _ in range(5):
        bench.clock.sleep(1)
        bench.agent.step()
    assert sum(bench.run(run).status is not Status.QUEUED for run in runs) == begun


def test_a_run_whose_data_was_checked_on_another_host_waits_for_devices_here(tmp_path: Path) -> None:
    launcher = OfHosts(Script(), "far")
    bench = Bench(tmp_path, launcher)
    bench.agent = bench.new_agent(devices=(0,))
    record = bench.create()
    bench.agent.step()
    bench.agent = bench.new_agent("here-anew", devices=(0,))
    bench.clock.sleep(60)
    bench.agent.adopt()
    assert bench.finish(record).status is Status.COMPLETED
    assert EventType.REQUEUED in bench.kinds(record)
    assert json.loads(bench.storage.run(record.id).attempt(1).job.read_bytes())["devices"] == [0]


def test_the_devices_of_a_run_that_another_agent_took_over_are_free_once_its_process_is_gone(tmp_path: Path) -> None:
    launcher = OfHosts(Script(holds_at=4), socket.gethostname())
    bench = Bench(tmp_path, launcher)
    first = bench.agent = bench.new_agent(devices=(0,))
    record = bench.create()
    bench.step(record, lambda run: run.step >= 3)
    bench.clock.sleep(60)  # as of a machine that was suspended
    bench.new_agent("far").adopt()
    waiting = bench.create()
    for _ in range(5):
        bench.clock.sleep(1)
        first.step()
    assert bench.run(waiting).status is Status.QUEUED
    launcher.signal({"stage": 2}, "kill")
    first.step()
    first.step()
    assert bench.run(waiting).status is not Status.QUEUED


def test_the_device_of_a_run_that_failed_here_is_free_once_its_process_is_gone(tmp_path: Path) -> None:
    class Hangs(OfHosts):
        breaks = dies = False

        def poll(self, handle: Handle) -> Poll:
            if self.breaks and handle["stage"] == 2:
                self.breaks = False  # a bug that does not come again
                raise ValueError("a bug")
            poll = super().poll(handle)
            return Poll(Life.ALIVE) if handle["stage"] == 2 and not self.dies else poll

        def signal(self, _handle: Handle, _how: str) -> None:
            raise OSError("no such disk")

    launcher = Hangs(Script(), socket.gethostname())
    for devices in ((0,), ()):
        bench = Bench(tmp_path / str(devices), launcher)
        bench.agent = bench.new_agent(devices=devices)
        record = bench.create()
        bench.step(record, lambda run: run.step >= 3)
        launcher.breaks = True
        assert bench.finish(record).status is Status.FAILED
        waiting = bench.create()
        for _ in range(5):
            bench.agent.step()
        assert bench.agent.busy and bench.run(waiting).status is Status.QUEUED
        launcher.dies = True
        bench.step(waiting, lambda run: run.status is not Status.QUEUED)
        launcher = Hangs(Script(), socket.gethostname())


def test_an_agent_has_one_launcher_of_a_name(tmp_path: Path) -> None:
    bench, made = Bench(tmp_path), []

    def launchers(name: str) -> ScriptedLauncher:
        made.append(name)
        return bench.launcher

    bench.agent = Agent(bench.store, bench.storage, launchers, Devices(()), "here")
    for record in (bench.create(), bench.create()):
        bench.finish(record)
    assert made == ["process"]


def test_devices_are_free_once_the_process_of_an_ended_run_is_gone(tmp_path: Path) -> None:
    class Lingers(ScriptedLauncher):
        killed = False

        def poll(self, handle: Handle) -> Poll:
            poll = super().poll(handle)
            return Poll(Life.ALIVE) if handle["kind"] == "train" and not self.killed else poll

        def signal(self, _handle: Handle, how: str) -> None:
            self.killed = self.killed or how == "kill"

    launcher = Lingers(Script(fails_at=2), SimulatedClock())
    bench = Bench(tmp_path, launcher)
    first, second = bench.create(), bench.create()
    assert bench.finish(first).status is Status.FAILED
    bench.agent.step()
    assert bench.run(second).status is Status.QUEUED
    bench.step(second, lambda run: run.status is not Status.QUEUED)
    assert launcher.killed
