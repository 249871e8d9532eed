"""The agent as a process: who may be the one of a machine, and when it makes room for the next."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

import fm
from fm.agent import daemon
from fm.agent.devices import Devices
from fm.errors import Conflict
from fm.layout import Storage
from fm.lifecycle import Status
from fm.settings import Settings
from fm.store.store import RunStore
from fm.types import Principal
from support.stores import new_run
from support.waiting import until


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a machine that is too small for a run with two processes."""
    monkeypatch.setattr(Devices, "_CPU_PROCESSES", 1)
    return Settings(tmp_path, Storage(tmp_path), f"sqlite:///{tmp_path / 'ftctl.db'}", "auto")


def test_a_drained_agent_ends_although_there_is_work(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_ANNOUNCE", timedelta(0))
    store = RunStore(settings.store_url)
    wide = store.create(new_run(num_processes=2), "k", Principal(user="ada"))
    thread = threading.Thread(target=daemon.serve, args=(settings, threading.Event()), kwargs={"forever": True})
    thread.start()
    until(store.agents, seconds=20)
    store.drain(store.agents()[0].id)
    thread.join(20)
    assert not thread.is_alive()
    assert store.find("local", wide.id).status is Status.QUEUED
    assert store.agents() == []


def test_only_an_older_agent_of_this_place_is_drained(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("fm.agent.daemon.subprocess.Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr(fm, "__version__", "9.0.0")
    store = RunStore(settings.store_url)
    store.announce("agent-far", "gpu-box:/home", 1, "1.0.0")
    store.announce("agent-near", daemon.place_of(settings), 1, "1.0.0")
    with daemon.agent_lock(settings):
        daemon.ensure(settings, store)
        daemon.ensure(settings, store)
    assert {agent.id: agent.drain for agent in store.agents()} == {"agent-far": False, "agent-near": True}
    assert len(started) == 1  # it waits until the older one has made room


def test_an_agent_waits_for_its_place_no_longer_than_it_is_patient(settings: Settings) -> None:
    def serve(patience: float) -> None:
        daemon.serve(
            settings, threading.Event(), forever=False, idle_end=timedelta(0), patience=timedelta(seconds=patience)
        )

    with daemon.agent_lock(settings):
        with pytest.raises(Conflict):
            serve(0.3)
        waiting = threading.Thread(target=serve, args=(30,))
        waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()


def test_an_inline_agent_with_a_run_that_has_to_wait_does_not_spin(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stop, begun = RunStore(settings.store_url), threading.Event(), []
    store.create(new_run(num_processes=2), "k", Principal(user="ada"))
    serve = daemon._serve
    monkeypatch.setattr(daemon, "_serve", lambda *args: begun.append(1) or serve(*args))  # type: ignore[func-returns-value]
    thread = threading.Thread(
        target=daemon.serve, args=(settings, stop), kwargs={"forever": False, "idle_end": timedelta(0)}
    )
    thread.start()
    time.sleep(1.5)
    stop.set()
    thread.join(20)
    assert len(begun) <= 3


@pytest.mark.parametrize(
    ("serves", "forever", "drained"),
    [("", False, True), ("", True, False), ("http://other:8265", False, False), ("http://head:8265", False, False)],
)
def test_an_agent_that_came_for_a_run_and_serves_no_cluster_makes_room_for_one_that_does(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    serves: str,
    forever: bool,
    drained: bool,
) -> None:
    started: list[object] = []
    monkeypatch.setattr("fm.agent.daemon.subprocess.Popen", lambda *args, **_: started.append(args))
    daemon._say_once.cache_clear()
    store = RunStore(settings.store_url)
    store.announce("agent-near", daemon.place_of(settings), 1, fm.__version__)
    monkeypatch.setenv("FM_RAY_ADDRESS", serves)
    with daemon.agent_lock(settings, forever=forever):
        monkeypatch.setenv("FM_RAY_ADDRESS", "http://head:8265")
        daemon.ensure(settings, store)
        daemon.ensure(settings, store)
    assert [agent.drain for agent in store.agents()] == [drained]
    assert len(started) == drained
    other = "http://head:8265" not in serves and not drained
    assert [record.message for record in caplog.records if record.name == "fm.agent"] == [
        f"the agent of this machine serves {f'the Ray cluster at {serves}' if serves else 'no Ray cluster'}: for runs "
        "on http://head:8265, start it with that FM_RAY_ADDRESS"
    ] * other
