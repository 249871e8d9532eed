"""What a create refuses for want of memory, and what a plan is asked with; no torch."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import fm
from fm import planning
from fm.planning import layout_of, parse_bytes
from support.rows import chats


def model_of(folder: Path, parameters: int) -> Path:
    """A folder that says it holds so many parameters, without the bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(4 * parameters)  # a sparse file
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats(tmp_path / "train.jsonl")


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
    monkeypatch.setattr(planning, "_smallest_device", lambda: pytest.fail("a device was asked"))
    prepared = fm.validate(model_of(tmp_path / "small", 10**6), data)
    began = time.perf_counter()
    planning.refuse_oversize(prepared, None)
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("512m", 512 * 10**6), (7, 7)]
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "24 apples", "-3GB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(fm.RequestError, match="device_memory"):
        parse_bytes(text)


def test_a_sharding_that_is_not_known_is_refused() -> None:
    assert [layout_of(name) for name in (None, "full_shard", "fsdp_offload")] == ["none", "full_shard", "offload"]
    with pytest.raises(fm.RequestError, match="sharding"):
        layout_of("sideways")
