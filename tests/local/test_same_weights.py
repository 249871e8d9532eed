"""A training makes the same weights, bit for bit, whether it is asked for here or through a server."""

from __future__ import annotations

from pathlib import Path

import pytest

import fm
from fm.backends.base import Backend
from fm.remote.opening import open_remote
from support.data import many_pairs
from support.ftctl_server import server_process
from support.local import local_backend, processes_of


def weights(backend: Backend, data: Path) -> list[dict[str, str]]:
    """Digests of a pretrained base, and of an adapter that is trained on it."""
    common = {"train_data_path": data, "task_type": "INSTRUCTION_FINETUNE", "batch_size": 8, "backend": backend}
    base = fm.create("fm/nano-llama", method="full", training_duration="6ba", register_to="main.same.base", **common)
    base.wait(120)
    tuned = fm.create("main.same.base", training_duration="3ba", register_to="main.same.tuned", **common).wait(120)
    return [backend.models.get(run.registered_model).files for run in (base, tuned)]


def test_a_server_trains_the_weights_that_this_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = many_pairs(tmp_path / "pairs.jsonl", 32)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with local_backend(tmp_path / "here") as backend:
        here = weights(backend, data)
    with server_process(tmp_path / "there", "--agent") as server:
        there = weights(open_remote(server.url), data)
    for process in processes_of(tmp_path / "there"):
        process.kill()
    assert any(name.endswith(".safetensors") for files in here for name in files)
    assert there == here
