"""A training of several processes, as the process launcher starts, stops and loses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fm.job import EXIT_STOPPED, Job
from fm.launching import Handle, Life
from fm.lifecycle import Status
from fm.types import Caller, RunRecord
from fm_local.launcher import ProcessLauncher
from support.models import events, examples, make_job, model
from support.stores import moment


class Ranks:
    """Two ranks under a torchrun."""

    def __init__(self, folder: Path) -> None:
        job, self.folder = make_job(
            folder, rows=examples(20), base=model("llama", folder / "base"), num_processes=2, training_duration="9999ba"
        )
        self.launcher = ProcessLauncher()
        self.handle: Handle = self.launcher.start(_record(job), self.folder, "train")
        self._wait(lambda: events(self.folder, "TRAIN_STARTED"), 120)
        self.processes = psutil.Process(self.handle["pid"]).children(recursive=True)

    def end(self) -> int | None:
        self._wait(lambda: self.launcher.poll(self.handle).life is Life.EXITED, 90)
        return self.launcher.poll(self.handle).code

    def _wait(self, true: Callable[[], object], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < give_up, self.folder.log.read_text()[-3000:]
            time.sleep(0.1)


def _record(job: Job) -> RunRecord:
    caller = Caller(env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})
    return RunRecord(
        id=job.run_id, name=job.run_name, status=Status.STARTING, request=job.request, model=job.model,
        train_data=job.train_data, caller=caller, created_at=moment(),
    )  # fmt: skip


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    started = Ranks(tmp_path)
    yield started
    started.launcher.signal(started.handle, "kill")


def test_a_stop_reaches_all_ranks_and_their_exit_code_the_agent(ranks: Ranks) -> None:
    ranks.launcher.signal(ranks.handle, "stop")
    assert ranks.end() == EXIT_STOPPED
    assert events(ranks.folder, "CHECKPOINT_SAVED")
    adopted = ProcessLauncher()
    assert adopted.poll(ranks.handle).code == EXIT_STOPPED


def test_no_rank_outlives_its_torchrun(ranks: Ranks) -> None:
    assert len(ranks.processes) >= 2
    psutil.Process(ranks.handle["pid"]).kill()
    assert ranks.end() == -9
    assert psutil.wait_procs(ranks.processes, timeout=20)[1] == []
