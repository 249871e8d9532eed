"""Real trainings over two nodes of a real cluster: of one, all parts are killed in turn, and one that is cancelled.

Each part once here; `make prove` kills each ten times.
"""

from __future__ import annotations

import fm
from support.ray_kills import PATIENCE, RayVictim, until


def test_a_worker_a_node_the_head_and_the_agent_are_killed_and_it_trains_as_two_processes_of_one_machine_do(
    here: fm.Run, victim: RayVictim
) -> None:
    run = victim.create()
    for attempt, part in enumerate(("worker", "node", "head", "agent"), 1):
        until(lambda attempt=attempt: run.refresh().attempt == attempt, f"attempt {attempt}")
        assert victim.disturb(run, part), part
    victim.check(run, here, starts=4)
    prompt = "what is 3 plus 3?\n"
    answers = [fm.load(each, backend=victim.backend).generate(prompt) for each in (run, here)]
    assert answers[0] == answers[1]


def test_cancelling_ends_every_worker_after_a_last_checkpoint(victim: RayVictim) -> None:
    run = fm.create(**{**victim.request, "training_duration": "100000ba"}, launcher="ray", num_nodes=2)
    until(lambda: run.refresh().record.step > 0, "a first step")
    run.cancel()
    run.wait(PATIENCE, raise_on_failure=False)
    assert run.checkpoints()[-1].step == run.refresh().record.step
    until(lambda: not any(victim.cluster.workers().values()), "the workers' end")
