"""Real trainings on nodes that go away or do not see what they need, and one that is cancelled."""

from __future__ import annotations

import re

import pytest

import fm
from fm.errors import RunFailed
from support.ray_kills import PATIENCE, RayVictim
from support.waiting import until


def test_two_processes_on_each_of_two_nodes_go_on_as_two_when_a_node_is_gone(here: fm.Run, victim: RayVictim) -> None:
    run = victim.create(num_processes=4, min_processes=2)
    try:
        assert victim.disturb(run, "second")
        # A third, if the second began before the cluster had noticed that the node is gone.
        victim.check(run, here, starts=2, at_most=3)
    finally:
        victim.cluster.start_second()
    # Each process has said which it is, and each line has come with the process that printed it.
    said = re.findall(r"RayTrainWorker pid=(\d+).*\) process (\d) of (\d)", run.logs())
    assert {(number, of) for _, number, of in said} == {(str(n + 1), str(of)) for of in (2, 4) for n in range(of)}
    assert len({pid for pid, _, of in said if of == "4"}) == 4


def test_a_node_that_does_not_see_the_runs_folder_fails_the_run_with_one_sentence(victim: RayVictim) -> None:
    run = victim.create()
    attempt = victim.backend.storage.run(run.id).attempt(1)
    until(attempt.log.exists, "the job's begin", seconds=PATIENCE)
    attempt.job.rename(attempt.path / "away.json")
    with pytest.raises(RunFailed, match=r"is not there on the Ray cluster's node .*: set FM_RUNS to a folder"):
        run.wait(PATIENCE)
    assert run.refresh().attempt == 1


def test_cancelling_ends_every_worker_after_a_last_checkpoint(victim: RayVictim) -> None:
    run = fm.create(**{**victim.request, "training_duration": "100000ba"}, launcher="ray", num_nodes=2)
    until(lambda: run.refresh().record.step > 0, "a first step", seconds=PATIENCE)
    run.cancel()
    run.wait(PATIENCE, raise_on_failure=False)
    assert run.checkpoints()[-1].step == run.refresh().record.step
    until(lambda: not any(victim.cluster.workers().values()), "the workers' end", seconds=PATIENCE)
