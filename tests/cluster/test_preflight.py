"""A preflight whose trainings are jobs of a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

import fm
from fm.ladder import climbing
from fm.ladder.widths import Width
from fm.ray.cluster import RayCluster
from support.data import many_pairs
from support.ray_cluster import Cluster
from support.ray_kills import PATIENCE
from support.waiting import until


def test_a_rung_of_two_nodes_passes_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether a batch is learnt is a question to the model, and tests/local asks it.
    monkeypatch.setattr(climbing, "overfit", lambda *_: fm.Rung(name="overfit", outcome="ok", found="left out"))
    # Rungs of one node do not differ from this one but in their widths.
    monkeypatch.setattr(climbing, "widths", lambda _: [Width(2, 2)])
    found = fm.preflight(
        "fm/nano-llama", many_pairs(tmp_path / "pairs.jsonl", 40), task_type="INSTRUCTION_FINETUNE", method="full",
        precision="fp32", batch_size=8, launcher="ray", num_nodes=2,
    )  # fmt: skip
    assert found.passed, str(found)
    assert [rung.name for rung in found.rungs] == ["overfit", "2 processes on 2 nodes"]
    assert [check.name for check in found.rungs[-1].checks] == [
        "loop", "logger", "examples", "gradients", "loss", "checkpoint",
    ]  # fmt: skip
    assert fm.list() == []
    ray = RayCluster(cluster.address, cluster.token)
    until(lambda: not ray.unfinished("run-"), "the last job's end", seconds=PATIENCE)
    assert not list((isolated / "fm").glob("preflights/*"))
