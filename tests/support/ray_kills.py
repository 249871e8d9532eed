"""Killing parts of a training on a Ray cluster, and looking at what is left of it.

Used by `tests/cluster` once for each part, and by `benchmarks/prove.py` many times.
"""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import fm
from fm.backends.base import RunFilter
from fm.backends.stored import StoreBackend
from fm.lifecycle import EventType, Status
from support.data import many_pairs
from support.ray_cluster import Cluster
from support.waiting import until

PATIENCE = 900.0
"""Seconds. Generous, for machines with other work: a training here takes half a minute."""
PARTS = ("worker", "node", "head", "agent")


class RayVictim:
    """A local backend whose runs train on two nodes of `cluster`, parts of which are killed."""

    def __init__(self, backend: StoreBackend, home: Path, cluster: Cluster) -> None:
        self.backend = backend
        self.cluster = cluster
        self.request = {
            "model": "fm/nano-llama",
            "train_data_path": str(many_pairs(home / "pairs.jsonl", 64)),
            "task_type": "INSTRUCTION_FINETUNE",
            "method": "full",
            "learning_rate": 1e-3,
            "training_duration": "240ba",
            "save_interval": "10ba",
            "batch_size": 8,
            "precision": "fp32",
            "register_to": "main.ray.victim",
            "backend": backend,
        }

    def create(self, **more: Any) -> fm.Run:
        return fm.create(**self.request, launcher="ray", num_nodes=2, **more)

    def here(self) -> fm.Run:
        """The same training by two processes of this machine, without a cluster."""
        return fm.create(**self.request, num_processes=2).wait(PATIENCE)

    def disturb(self, run: fm.Run, part: str) -> bool:
        """Kills `part`, one of `PARTS` or the "second" node for good, once the newest attempt of `run` has saved a
        checkpoint, and starts anew what nobody else does. Returns whether the run was still going."""
        seen = run.refresh().record.checkpoint_step or 0

        def has_saved_or_ended() -> bool:
            return (run.refresh().record.checkpoint_step or 0) > seen or run.status.is_terminal()

        until(has_saved_or_ended, "a checkpoint", seconds=PATIENCE)
        going = run.status is Status.RUNNING
        getattr(self, f"_kill_{part}")()
        return going

    def check(self, run: fm.Run, undisturbed: fm.Run, starts: int, *, at_most: int = 0) -> None:
        """The run is COMPLETED, once, after `starts` attempts (or up to `at_most`), with the losses of the undisturbed
        one, and neither run nor version is there twice."""
        run = run.wait(PATIENCE)
        assert run.status is Status.COMPLETED, run.reason
        assert starts <= run.attempt <= max(starts, at_most), [event.message for event in run.get_events()]
        events = run.get_events()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert sum(event.type is EventType.COMPLETED for event in events) == 1
        assert len([v for v in self.backend.models.list(name="main.ray.victim") if v.run_id == run.id]) == 1
        assert len([record for record in self.backend.runs.list(RunFilter(limit=1000)) if record.id == run.id]) == 1
        assert farthest(run, undisturbed) <= 1e-3

    def _kill_worker(self) -> None:
        self.cluster.workers()["second"][0].kill()

    def _kill_second(self) -> None:
        self.cluster.kill("second")

    def _kill_node(self) -> None:
        self.cluster.kill("second")
        self.cluster.start_second()

    def _kill_head(self) -> None:
        self.cluster.kill("head")
        self.cluster.start_head()
        # A node ends once it finds that its head is another one; whoever runs the cluster starts it again.
        self.cluster.kill("second")
        self.cluster.start_second()

    def _kill_agent(self) -> None:
        for agent in self.backend.store.agents():
            with suppress(ProcessLookupError):
                if psutil.pid_exists(agent.pid):
                    os.kill(agent.pid, signal.SIGKILL)


def losses(run: fm.Run) -> dict[int, float]:
    """The training loss of each step."""
    return {row.step: row.values["loss/train/total"] for row in run.metrics("loss/train/total")}


def farthest(one: fm.Run, other: fm.Run) -> float:
    """The largest difference between the losses of a step; infinite if they are not of the same steps."""
    first, second = losses(one), losses(other)
    if first.keys() != second.keys():
        return math.inf
    return max(abs(first[step] - second[step]) for step in first)
