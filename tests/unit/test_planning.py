"""What a create refuses for want of memory, and what a plan is asked with; no torch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fm
from fm import examine, planning
from fm.planning import parameters_of, parse_bytes
from fm.plans import Memory, Plan, PlanOption
from fm.request import TrainRequest


def model_of(folder: Path, parameters: int) -> Path:
    """A folder that says it holds so many parameters, without the bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * parameters)  # a sparse file
    return folder


def plan_of(need: int, device_memory: int, processes: int = 1) -> Plan:
    """A plan that says no more than this."""
    memory = Memory(
        weights=need, gradients=0, optimizer=0, activations=0, logits=0, temporary=0, framework=0, reserved=need
    )
    option = PlanOption(method="full", sharding="none", processes=processes, memory=memory, fits=False, requested=True)
    return Plan(
        model="m", parameters=1, trained_parameters=1, device="CPU", device_memory=device_memory, devices=1,
        processes=processes, micro_batch=(1, 8), most_rows=1, options=(option,), examples=1, tokens_per_epoch=1,
        steps=None, tokens=None, tokens_per_second=None, seconds=3600.0, cost=None, assumptions=(), advice=(),
    )


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_AGENT", "off")


def test_a_model_that_certainly_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, data: Path) -> None:
    model = model_of(tmp_path / "huge", 10**12)
    with pytest.raises(fm.RequestError, match=r"can't fit.*weights") as caught:
        fm.create(model, data)
    assert "allow_oversize" in str(caught.value)
    assert fm.list() == []


def test_an_oversized_model_is_taken_when_it_is_told_so(tmp_path: Path, data: Path) -> None:
    run = fm.create(model_of(tmp_path / "huge", 10**12), data, allow_oversize=True)
    assert run.status is fm.Status.QUEUED


def test_a_plainly_small_model_costs_a_create_no_time(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_memory_of_a_process", lambda _: pytest.fail("a device was asked"))
    prepared = fm.validate(model_of(tmp_path / "small", 10**6), data)
    began = time.perf_counter()
    planning.refuse_oversize(prepared)
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("512m", 512 * 10**6), (7, 7)]
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "24 apples", "-3GB", "1.2.3GB", ".", "", float("nan"), float("inf"), 0])
def test_what_is_no_size_is_refused_with_an_example(text: str | float) -> None:
    with pytest.raises(fm.RequestError, match="device_memory"):
        parse_bytes(text)


@pytest.mark.parametrize("sharding", ["full_shard", "fsdp", "offload", "sideways"])
def test_a_plan_takes_the_shardings_that_a_training_takes(tmp_path: Path, data: Path, sharding: str) -> None:
    with pytest.raises(fm.RequestError, match="sharding"):
        fm.plan(model_of(tmp_path / "small", 10**6), data, sharding=sharding, num_processes=2)


@pytest.mark.parametrize(
    ("sharding", "method", "least"), [("none", "full", 16e6), ("zero2", "full", 7e6), ("zero2", "lora", 2e6)]
)
def test_what_every_process_holds_whole_counts_whole(sharding: str, method: str, least: float) -> None:
    request = TrainRequest.build({
        "model": "m", "train_data_path": "d", "method": method, "sharding": sharding, "num_processes": 4,
    })  # fmt: skip
    assert planning.least_bytes(request, 10**6) == least


MIDDLE = 10**8
"""Parameters that take between an eighth and all of 2.4 GB when all are trained."""


def between(monkeypatch: pytest.MonkeyPatch, outcome: Plan | Exception) -> None:
    """Lets this machine have 2.4 GB, and a plan end in `outcome`."""

    def make_plan(_: object) -> Plan:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(planning, "main_memory", lambda: 24 * 10**8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(examine, "load", lambda *_: make_plan)


@pytest.mark.parametrize(("need", "refused"), [(4 * 10**9, True), (29 * 10**8, False)])
def test_what_lies_near_the_memory_is_traced_and_refused_only_beyond_the_plans_own_error(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, need: int, refused: bool
) -> None:
    between(monkeypatch, plan_of(need, 24 * 10**8))
    model = model_of(tmp_path / "middle", MIDDLE)
    if refused:
        with pytest.raises(fm.RequestError, match=r"one example of 8 tokens would take 4\.0 GB of the 2\.4 GB"):
            fm.create(model, data, method="full")
    else:
        assert fm.create(model, data, method="full").status is fm.Status.QUEUED


@pytest.mark.parametrize(
    "failure", [fm.errors.Unsupported("a step can't be traced"), fm.errors.Unavailable("no configuration")]
)
def test_where_no_plan_can_be_made_nothing_is_refused(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    between(monkeypatch, failure)
    assert fm.create(model_of(tmp_path / "middle", MIDDLE), data, method="full").status is fm.Status.QUEUED


def test_processes_on_a_cpu_are_held_against_their_share_of_its_memory(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between(monkeypatch, plan_of(10**9, 24 * 10**8, processes=2))
    model = model_of(tmp_path / "middle", MIDDLE)
    fm.create(model, data, method="full")
    with pytest.raises(fm.RequestError, match=r"of the 1\.2 GB that a process has"):
        fm.create(model, data, method="full", num_processes=2)


@pytest.mark.parametrize(("visible", "gib"), [(None, 80), ("0", 4), ("1", 80), ("0,1", 80)])
def test_the_largest_visible_gpu_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, gib: int
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\ncase "$1" in -L) echo "GPU 0: small"; echo "GPU 1: large";; '
                   '*) echo "0, 4096"; echo "1, 81920";; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert planning._memory_of_a_process(1) == gib << 30


def test_parameters_are_read_from_the_headers_whatever_their_number_format(tmp_path: Path, data: Path) -> None:
    assert parameters_of(fm.validate(model_of(tmp_path / "half", 10**6), data).model) == 10**6


def test_the_disk_for_full_checkpoints_is_counted_in_fp32(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three checkpoints of weights and two moments, and the result: 40 bytes for each parameter, 4 GB.
    model = model_of(tmp_path / "middle", MIDDLE)
    for free, enough in ((41 * 10**8, True), (39 * 10**8, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if enough:
            fm.validate(model, data, method="full", allow_oversize=True)
        else:
            with pytest.raises(fm.DiskFull):
                fm.validate(model, data, method="full", allow_oversize=True)


def test_a_plan_of_a_duration_whose_speed_is_not_known_can_be_shown() -> None:
    assert "about 1h" in str(plan_of(1, 10))


def test_processes_on_one_cpu_share_its_memory_in_what_is_shown() -> None:
    plan = plan_of(1, 64 * 10**9, processes=4)
    assert dict(plan.summary())["device"] == "1 x CPU, 64.0 GB each, shared by 4 processes"
    assert plan.process_memory == 16 * 10**9
