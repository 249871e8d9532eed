"""Real trainings over two nodes of a real cluster: as two processes of one machine, and with parts of it killed.

Each part once here; `make prove` kills each ten times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import fm
from fm.errors import RunFailed
from support.local import local_backend
from support.ray_cluster import Cluster
from support.ray_kills import PATIENCE, RayVictim, farthest, until


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[RayVictim]:
    home = tmp_path_factory.mktemp("ray")
    with local_backend(home / "fm", OMP_NUM_THREADS="1", **cluster.environment) as backend:
        yield RayVictim(backend, home, cluster)


@pytest.fixture(scope="module")
def two_nodes(victim: RayVictim) -> fm.Run:
    """A run that trained undisturbed, with two workers on two nodes."""
    return victim.create().wait(PATIENCE)


def test_two_nodes_train_as_two_processes_of_one_machine_do(two_nodes: fm.Run, victim: RayVictim) -> None:
    here = victim.here()
    assert farthest(two_nodes, here) <= 1e-3
    prompt = "what is 3 plus 3?\n"
    answers = [fm.load(run, backend=victim.backend).generate(prompt) for run in (two_nodes, here)]
    assert answers[0] == answers[1]


def test_a_worker_a_node_the_head_and_the_agent_are_killed_and_cost_no_run_and_change_no_loss(
    two_nodes: fm.Run, victim: RayVictim
) -> None:
    run = victim.create()
    for attempt, part in enumerate(("worker", "node", "head", "agent"), 1):
        until(lambda attempt=attempt: run.refresh().attempt == attempt, f"attempt {attempt}")
        assert victim.disturb(run, part), part
    victim.check(run, two_nodes, starts=4)


def test_two_processes_on_each_of_two_nodes_go_on_as_two_when_a_node_is_gone(
    two_nodes: fm.Run, victim: RayVictim
) -> None:
    run = victim.create(num_processes=4, min_processes=2)
    try:
        assert victim.disturb(run, "second")
        # A third, if the second began before the cluster had noticed that the node is gone.
        victim.check(run, two_nodes, starts=2, at_most=3)
    finally:
        victim.cluster.start_second()
    # Each process has said which it is, and each line has come with the process that printed it.
    said = re.findall(r"RayTrainWorker pid=(\d+).*\) process (\d) of (\d)", run.logs())
    assert {(number, of) for _, number, of in said} == {(str(n + 1), str(of)) for of in (2, 4) for n in range(of)}
    assert len({pid for pid, _, of in said if of == "4"}) == 4


def test_a_node_that_does_not_see_the_runs_folder_fails_the_run_with_one_sentence(victim: RayVictim) -> None:
    run = victim.create()
    attempt = victim.backend.storage.run(run.id).attempt(1)
    until(attempt.log.exists, "the job's begin")
    attempt.job.rename(attempt.path / "away.json")
    with pytest.raises(RunFailed, match=r"is not there on the Ray cluster's node .*: set FM_RUNS to a folder"):
        run.wait(PATIENCE)
    assert run.refresh().attempt == 1


def test_cancelling_ends_every_worker_after_a_last_checkpoint(victim: RayVictim) -> None:
    run = fm.create(**{**victim.request, "training_duration": "100000ba"}, launcher="ray", num_nodes=2)
    until(lambda: run.refresh().record.step > 0, "a first step")
    run.cancel()
    run.wait(PATIENCE, raise_on_failure=False)
    assert run.checkpoints()[-1].step == run.refresh().record.step
    until(lambda: not any(victim.cluster.workers().values()), "the workers' end")
