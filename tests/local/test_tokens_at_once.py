"""How many tokens are computed at once where memory is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fm.errors import RequestError
from fm.lifecycle import Fault
from fm_local.plan import budget, machine, planning
from fm_local.trainer import device
from fm_local.trainer.failures import failure_event
from support.models import make_job, model, tokenizer

USUAL = 2048
"""Tokens at once on a CPU."""
LENGTH = 60


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    rows = [([n % 256 for n in range(LENGTH)], [True] * LENGTH)] * 64
    base = tokenizer(model("llama", tmp_path / "base", hidden=64))
    made, _ = make_job(tmp_path, rows=rows, base=base, batch_size=64, method="full", precision="fp32")
    return made


def memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Lets this machine have so many bytes beside what the system and a process take."""
    for module in (budget, machine):
        monkeypatch.setattr(module, "main_memory", lambda: int(size) + machine._SYSTEM + planning._CPU_PROCESS)


def test_where_memory_is_ample_nothing_is_planned(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("planned"))  # not an Exception
    assert budget.tokens_at_once(job) == device.micro_batch_tokens(torch.device("cpu")) == USUAL


def test_where_memory_is_short_as_much_is_computed_at_once_as_the_plan_has_room_for(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bound from the width alone must not be what decides here.
    monkeypatch.setattr(budget, "kept_bytes", lambda *_: float("inf"))
    found = []
    for size in (1e9, 2e7, 1e7, 1e6):
        memory(monkeypatch, size)
        found.append(budget.tokens_at_once(job))
    assert found[0] == USUAL
    assert found == sorted(found, reverse=True)
    assert USUAL > found[1] > found[2] > LENGTH
    assert found[3] == LENGTH  # no room for one, and one is tried


def test_what_certainly_does_not_fit_the_machine_that_trains_is_refused_unless_told_otherwise(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "kept_bytes", lambda *_: float("inf"))
    memory(monkeypatch, -machine._SYSTEM - planning._CPU_PROCESS // 2)  # less than the libraries alone take
    with pytest.raises(RequestError, match="can't fit: a step with one example of 60 tokens") as caught:
        budget.tokens_at_once(job)
    assert failure_event(caught.value)[2] is Fault.USER
    for told in ({"allow_oversize": True}, {"resume_from": ("a checkpoint, so it fitted somewhere",)}):
        assert budget.tokens_at_once(job.model_copy(update=told)) == LENGTH


def test_weights_that_no_memory_here_holds_are_refused_without_a_plan(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("planned"))
    memory(monkeypatch, 1e6 - machine._SYSTEM - planning._CPU_PROCESS)
    with pytest.raises(RequestError, match="can't fit: weights, gradients and optimiser states alone"):
        budget.tokens_at_once(job)


def test_an_example_that_is_longer_than_what_is_usual_is_planned_for(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "micro_batch_tokens", lambda _: 1)  # as if 60 tokens were far more than is usual
    monkeypatch.setattr(budget, "kept_bytes", lambda _, tokens: 1e18 * (tokens >= LENGTH))
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("planned"))
    with pytest.raises(pytest.fail.Exception, match="planned"):
        budget.tokens_at_once(job)


def test_where_no_plan_can_be_made_what_is_usual_is_tried(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise planning.Unsupported("a step can't be traced")

    monkeypatch.setattr(budget, "kept_bytes", lambda *_: float("inf"))
    monkeypatch.setattr(planning, "make_plan", fail)
    assert budget.tokens_at_once(job) == USUAL
