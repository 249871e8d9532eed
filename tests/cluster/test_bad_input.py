"""What a real cluster refuses: one clear error each, before anything is queued where it can be known."""

from __future__ import annotations

from pathlib import Path

import pytest

import fm
from fm.backends.base import RunFilter
from fm.errors import RequestError, RunFailed, Unauthorised
from support.data import many_pairs
from support.ray_backend import stub_backend
from support.ray_cluster import Cluster


def request(folder: Path) -> dict[str, str]:
    data = many_pairs(folder / "pairs.jsonl", 8)
    return {
        "model": "fm/nano-llama", "train_data_path": str(data), "task_type": "INSTRUCTION_FINETUNE", "method": "full",
        "training_duration": "1ba", "launcher": "ray",
    }  # fmt: skip


def test_a_wrong_token_and_too_many_gpus_are_refused_before_anything_is_queued(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub_backend(tmp_path / "fm", cluster) as backend:
        with pytest.raises(RequestError, match=r"4 processes with 1 CPU, 1 GPU each.*the cluster has 2 nodes"):
            fm.create(**request(tmp_path), num_nodes=2, num_processes=4, process_gpus=1, backend=backend)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 10)
        with pytest.raises(Unauthorised, match="refuses this token"):
            fm.create(**request(tmp_path), backend=backend)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        with pytest.raises(Unauthorised, match="needs a token"):
            fm.create(**request(tmp_path), backend=backend)
        assert list(backend.runs.list(RunFilter())) == []


def test_another_version_on_the_cluster_fails_the_run_with_one_sentence(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fm.__version__", "9.9.9")
    with stub_backend(tmp_path / "fm", cluster, entry="fm_local.ray_job") as backend:
        run = fm.create(**request(tmp_path), backend=backend)
        with pytest.raises(RunFailed, match=r"the Ray cluster has ftctl .* started by 9\.9\.9"):
            run.wait(120)
        assert run.refresh().attempt == 0
