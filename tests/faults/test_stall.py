"""A training that stands still (stopped, or waiting for what never comes) is found by its missing steps."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

import fm
from fm.agent import signs
from fm.lifecycle import EventType, Status
from support.data import many_pairs
from support.local import local_backend, processes_of
from support.waiting import until

soon = partial(until, seconds=120, every=0.005)


def test_a_stopped_trainer_is_ended_and_the_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "_SHORTEST_STALL", timedelta(seconds=8))
    data = many_pairs(tmp_path / "pairs.jsonl", 64)
    with local_backend(tmp_path, FM_AGENT="inline") as backend, fm.backend(backend):
        run = fm.create(
            model="fm/nano-llama",
            train_data_path=str(data),
            task_type="INSTRUCTION_FINETUNE",
            method="full",
            training_duration="400ba",
            save_interval="20ba",
            register_to="main.stall.model",
        )
        soon(lambda: (backend.runs.get(run.id).checkpoint_step or 0) >= 40)
        [trainer] = [process for process in processes_of(tmp_path) if "fm_local.trainer" in process.cmdline()]
        [heartbeat] = tmp_path.rglob("attempts/1/heartbeat.json")

        def stands_still() -> bool:
            """Between two saves: one that was announced would be given its time."""
            trainer.suspend()
            if json.loads(heartbeat.read_bytes())["pause"]:
                trainer.resume()
                return False
            return True

        soon(stands_still)
        run = fm.wait(run, timeout=180)
        assert run.status is Status.COMPLETED
        assert not psutil.pid_exists(trainer.pid)
        [requeued] = [event for event in run.events() if event.type is EventType.REQUEUED]
        assert "it stood still at step" in requeued.message
        assert backend.runs.get(run.id).attempt == 2


def test_a_trainer_whose_save_takes_longer_than_a_stall_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs, "_SHORTEST_STALL", timedelta(seconds=5))
    monkeypatch.setattr(signs, "_LONGEST_PAUSE", timedelta(seconds=60))
    data = many_pairs(tmp_path / "pairs.jsonl", 64)
    with local_backend(tmp_path, FM_AGENT="inline") as backend, fm.backend(backend):
        run = fm.create(
            model="fm/nano-llama",
            train_data_path=str(data),
            task_type="INSTRUCTION_FINETUNE",
            method="full",
            training_duration="400ba",
            save_interval="10ba",
            register_to="main.stall.model",
        )
        [heartbeat] = soon(lambda: list(tmp_path.rglob("attempts/1/heartbeat.json")))

        def saves() -> bool:
            return (json.loads(heartbeat.read_bytes())["pause"] or {}).get("why") == "saving"

        [trainer] = [process for process in processes_of(tmp_path) if "fm_local.trainer" in process.cmdline()]
        soon(lambda: (backend.runs.get(run.id).checkpoint_step or 0) >= 20)
        while True:
            soon(saves)
            trainer.suspend()
            if saves():
                break
            trainer.resume()
        time.sleep(12)
        trainer.resume()
        run = fm.wait(run, timeout=180)
        assert (run.status, backend.runs.get(run.id).attempt) == (Status.COMPLETED, 1)
