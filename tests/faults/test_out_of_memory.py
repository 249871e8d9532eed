"""A trainer that the system ends for want of memory: a real control group, and a real kill by the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import fm
from fm.job import Job
from fm.lifecycle import EventType, Status
from support.data import many_pairs
from support.local import local_backend, processes_of
from support.waiting import until

_LIMIT = 40 << 20
"""Less than importing torch takes."""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group whose processes have so little memory together."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / f"fm-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(_LIMIT))
                yield group
                return
        finally:
            with suppress(OSError):
                group.rmdir()
    pytest.skip("only who may make control groups of memory (root on Linux) can have the kernel end a process")


def test_a_trainer_that_is_ended_for_want_of_memory_goes_on_with_less_at_once(
    tmp_path: Path, small_group: Path
) -> None:
    def trainers() -> list[psutil.Process]:
        return [process for process in processes_of(tmp_path) if "fm_local.trainer" in process.cmdline()]

    with local_backend(tmp_path, FM_AGENT="inline") as backend, fm.backend(backend):
        run = fm.create(
            model="fm/nano-llama",
            train_data_path=str(many_pairs(tmp_path / "pairs.jsonl", 64)),
            task_type="INSTRUCTION_FINETUNE",
            method="full",
            training_duration="8ba",
        )
        [trainer] = until(trainers, seconds=120, every=0.005)
        (small_group / "cgroup.procs").write_text(str(trainer.pid))
        run = fm.wait(run, timeout=180)
        assert run.status is Status.COMPLETED
        [requeued] = [event for event in run.events() if event.type is EventType.REQUEUED]
        assert "killed by signal 9, while the machine was out of memory" in requeued.message
        [second] = [Job.read(folder) for number, folder in backend.storage.run(run.id).attempts() if number == 2]
        assert second.starved == 1
        said = [event.data for event in run.events() if event.type is EventType.MODEL_INITIALIZED]
        assert [each["checkpointing"] for each in said] == [True]
