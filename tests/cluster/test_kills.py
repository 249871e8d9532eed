"""A real training over two nodes of a real cluster, all of whose parts are killed in turn.

Each part once here; `make prove` kills each ten times.
"""

from __future__ import annotations

import fm
from support.ray_kills import PATIENCE, RayVictim
from support.waiting import until


def test_a_worker_a_node_the_head_and_the_agent_are_killed_and_it_trains_as_two_processes_of_one_machine_do(
    here: fm.Run, victim: RayVictim
) -> None:
    run = victim.create()
    for part in ("worker", "node", "head", "agent"):
        assert victim.disturb(run, part), part
        if part != "agent":  # whose run goes on without it
            killed = run.attempt
            until(lambda killed=killed: run.refresh().attempt > killed, f"an attempt after {killed}", seconds=PATIENCE)
    # Ray misses a node after some seconds: an attempt that is begun before ends for want of it.
    victim.check(run, here, starts=4, at_most=6)
    prompt = "what is 3 plus 3?\n"
    answers = [fm.load(each, backend=victim.backend).generate(prompt) for each in (run, here)]
    assert answers[0] == answers[1]
