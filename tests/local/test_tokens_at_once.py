"""How many tokens are computed at once, and what is kept of them, where memory is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fm.errors import RequestError, Unsupported
from fm.lifecycle import EventType, Fault
from fm.request import TrainRequest
from fm_local.plan import budget, machine, options, planning
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
        monkeypatch.setattr(module, "main_memory", lambda: int(size) + machine._SYSTEM + options._CPU_PROCESS)


def test_where_memory_is_ample_nothing_is_planned(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("planned"))  # not an Exception
    assert budget.budget_of(job) == (device.micro_batch_tokens(torch.device("cpu")), False) == (USUAL, False)


def test_where_memory_is_short_as_much_is_computed_at_once_as_the_plan_has_room_for(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bound from the width alone must not be what decides here.
    monkeypatch.setattr(budget, "kept_bytes", lambda *_: float("inf"))
    found = []
    for size in (1e9, 2e8, 1e8, 1e7, 5e6, 1e6):
        memory(monkeypatch, size)
        found.append(budget.budget_of(job))
    ample, fewer, *checkpointed = found
    assert ample == (USUAL, False)
    assert USUAL / 4 <= fewer.max_tokens < USUAL and not fewer.checkpointing
    assert all(each.checkpointing for each in checkpointed)
    at_once = [each.max_tokens for each in checkpointed]
    assert at_once[0] == USUAL > at_once[1] > at_once[2] > LENGTH
    assert at_once[3] == LENGTH  # no room for one, and one is tried


def test_what_certainly_does_not_fit_the_machine_that_trains_is_refused_unless_told_otherwise(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "kept_bytes", lambda *_: float("inf"))
    memory(monkeypatch, -machine._SYSTEM - options._CPU_PROCESS // 2)  # less than the libraries alone take
    with pytest.raises(RequestError, match="can't fit: a step with one example of 60 tokens") as caught:
        budget.budget_of(job)
    assert failure_event(caught.value, job.request)[2] is Fault.USER
    for told in ({"allow_oversize": True}, {"resume_from": ("a checkpoint, so it fitted somewhere",)}):
        assert budget.budget_of(job.model_copy(update=told)) == (LENGTH, True)


def test_weights_that_no_memory_here_holds_are_refused_without_a_plan(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("planned"))
    memory(monkeypatch, 1e6 - machine._SYSTEM - options._CPU_PROCESS)
    with pytest.raises(RequestError, match="can't fit: weights, gradients and optimiser states alone"):
        budget.budget_of(job)


def test_an_example_that_is_longer_than_what_is_usual_is_planned_for(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "micro_batch_tokens", lambda _: 1)  # as if 60 tokens were far more than is usual
    monkeypatch.setattr(budget, "kept_bytes", lambda _, tokens: 1e18 * (tokens >= LENGTH))
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("planned"))
    with pytest.raises(pytest.fail.Exception, match="planned"):
        budget.budget_of(job)


def test_where_no_plan_can_be_made_what_is_usual_is_tried(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unsupported("a step can't be traced")

    monkeypatch.setattr(budget, "kept_bytes", lambda *_: float("inf"))
    monkeypatch.setattr(planning, "make_plan", fail)
    assert budget.budget_of(job) == (USUAL, False)


def test_what_died_for_want_of_memory_computes_half_as_much_at_once_and_keeps_no_activations(job: Any) -> None:
    found = [budget.budget_of(job.model_copy(update={"starved": count})) for count in (0, 1, 3, 20)]
    assert found == [(USUAL, False), (USUAL // 2, True), (USUAL // 8, True), (1, True)]


def test_a_gpus_share_is_not_cut_for_want_of_main_memory_nor_trusted_where_no_plan_can_be_made(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        total_memory = 80 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    usual = device.micro_batch_tokens(torch.device("cuda"))
    assert budget.budget_of(job.model_copy(update={"starved": 3})) == (usual, False)

    def fail(*_: object, **__: object) -> None:
        raise Unsupported("a step can't be traced")

    monkeypatch.setattr(budget, "kept_bytes", lambda *_: 0.0)  # a family that does not say its shape
    monkeypatch.setattr(planning, "make_plan", fail)
    assert budget.budget_of(job) == (usual, True)


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ({"method": "full"}, "method='lora', method='qlora', sharding='full' over several GPUs, a shorter"),
        ({"method": "lora", "optimizer": "adafactor"}, "method='qlora', a shorter"),
        ({"model": "fm/nano-llama", "method": "full"}, "sharding='full' over several GPUs, a shorter"),
        ({"method": "qlora", "num_processes": 2, "sharding": "full"}, "sharding='full-offload', a shorter"),
        ({"method": "qlora", "num_processes": 2, "sharding": "full-offload"}, "a shorter context_length, a smaller"),
    ],
)
def test_exhausted_memory_is_the_users_to_act_on_and_told_with_what_is_left_to_try(
    asked: dict[str, Any], first: str
) -> None:
    request = TrainRequest.build({"model": "m", "train_data_path": "d", **asked})
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    type, message, fault = failure_event(error, request)
    assert (type, fault) == (EventType.FAILED, Fault.USER)
    assert f"try, in this order: {first}" in message
    assert failure_event(ZeroDivisionError("x"), request)[::2] == (EventType.FAILED_EXCEPTION, Fault.INTERNAL)
