"""How the trainer opens a GPU, as far as that can be seen without one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from fm.errors import Unsupported
from fm_local.trainer import device
from support.models import examples, make_job, model


def test_bf16_is_refused_on_a_gpu_without_it_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folder = make_job(tmp_path, rows=examples(8), base=model("llama", tmp_path / "base"), precision="bf16")
    gpu = {"is_available": True, "is_bf16_supported": False, "get_device_name": "Tesla T4"}
    for name, answer in gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    with pytest.raises(Unsupported, match="Tesla T4 does not compute in bf16"):
        device.open_accelerator(job.request, folder)


@pytest.mark.parametrize(("processes", "backend"), [(1, None), (2, "cuda:nccl,cpu:gloo")])
def test_processes_on_gpus_sum_in_both_memories_and_one_process_opens_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, backend: str | None
) -> None:
    job, folder = make_job(tmp_path, rows=examples(8), base=model("llama", tmp_path / "base"), precision="fp32")
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "Accelerator", lambda **kwargs: given.update(kwargs))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    device.open_accelerator(job.request, folder)
    [group] = [handler.to_kwargs() for handler in given["kwargs_handlers"] if hasattr(handler, "init_method")]
    assert group.get("backend") == backend
    assert group["timeout"] > timedelta(hours=1)
