"""Whether a plan keeps activations or has layers computed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.plans import Memory
from fm_local.plan import machine, options
from fm_local.plan.tracing import Step, Traced, trace
from support import models
from support.rows import chats


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats(tmp_path / "train.jsonl", 64)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return models.tokenizer(models.model("llama", tmp_path / "base", hidden=64))


def test_activations_are_kept_where_there_is_room_and_else_computed_again(base: Path, data: Path) -> None:
    def plan(memory: float) -> fm.Plan:
        return fm.plan(base, data, device="H100", device_memory=memory, batch_size=64)

    ample = plan(10**10)
    memory = ample.requested.memory
    assert (ample.requested.checkpointing, ample.micro_batch[0]) == (False, 64)
    fixed, passing = memory.allocated - memory.passing, memory.reserved - memory.allocated + memory.passing
    # Fewer rows come before computing again, but no fewer than a quarter of them.
    fewer = plan(machine._CONTEXT + 1.25 * (fixed + 0.6 * passing))
    assert not fewer.requested.checkpointing
    assert 16 <= fewer.micro_batch[0] < 64
    scarce = plan(machine._CONTEXT + 1.25 * (fixed + 0.1 * passing))
    assert scarce.requested.checkpointing
    assert scarce.fits
    assert scarce.micro_batch[0] > 16
    assert (scarce.seconds or 0) > 1.2 * (ample.seconds or 0)


def test_ways_to_train_that_were_not_asked_for_say_whether_they_would_keep_activations(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory_of(traced: Traced, method: str, *_: object, **__: object) -> Memory:
        size = round(1e9 * {"lora": 4.0, "qlora": 2.0, "full": 9.0}[method] * (1.0 if traced.casts_kept >= 0 else 0.5))
        return Memory(
            weights=0, gradients=0, optimizer=0, activations=size, logits=0, temporary=0, framework=0, reserved=size
        )

    def traced(config: Any, step: Step) -> Traced:
        return replace(trace(config, step), casts_kept=-1.0 if step.checkpointing else 0.0)

    monkeypatch.setattr(options, "memory_of", memory_of)
    monkeypatch.setattr(options, "trace", traced)
    plan = fm.plan(base, data, device="H100", device_memory=machine._CONTEXT + 10 * 10**9)
    found = {option.method: (option.checkpointing, option.fits) for option in plan.options if option.processes == 1}
    assert found == {"lora": (False, True), "qlora": (False, True), "full": (True, True)}

    def none_again(config: Any, step: Step) -> Traced:
        if step.checkpointing:
            raise fm.Unsupported("this family can't")
        return traced(config, step)

    monkeypatch.setattr(options, "trace", none_again)
    plan = fm.plan(base, data, method="full", device="H100", device_memory=machine._CONTEXT + 10 * 10**9)
    assert (plan.requested.checkpointing, plan.fits) == (False, True)
    assert plan.most_rows >= plan.micro_batch[0] > 0
