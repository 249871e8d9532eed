"""Pieces of a step computed side by side on a CPU: the same result as one after the other, the same bits every time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from fm.files import digest_file
from fm.layout import StageFolder
from fm_local.trainer import device
from fm_local.trainer import lanes as lanes_module
from fm_local.trainer import loss as loss_module
from fm_local.trainer import step as step_module
from fm_local.trainer.lanes import Lanes
from support.families import FAMILIES, save
from support.models import events, examples, make_job, model, run, series

FULL_ONLY = ("mixtral", "qwen2_moe", "mamba")
"""PEFT adapts experts in a way that only one thread at a time can use, and not all linear layers of Mamba."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Whatever the tests are given otherwise: lanes share threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(
    root: Path, count: int, monkeypatch: pytest.MonkeyPatch, *, max_tokens: int = 128, checkpointing: bool = False,
    **more: Any,
) -> StageFolder:
    """Nine steps of eight examples in `count` lanes."""
    monkeypatch.setattr(lanes_module, "_MOST", count)
    settings = {"rows": examples(24), "held_out": examples(7, seed=9), "batch_size": 8, "training_duration": "3ep"}
    job, folder = make_job(root, **settings | more)
    assert run(job, folder, max_tokens=max_tokens, checkpointing=checkpointing)
    said = events(folder, "MODEL_INITIALIZED")[0]
    assert (said["lanes"], said["checkpointing"]) == (count, checkpointing)
    return folder


def weights(folder: StageFolder) -> dict[str, str]:
    return {path.name: digest_file(path) for path in folder.final.glob("*.safetensors")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_side_by_side_has_the_losses_of_one_piece_after_the_other(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "full" if family in FULL_ONLY else "lora"
    more: dict[str, Any] = {"base": save(family, tmp_path / "base"), "learning_rate": 1e-3, "method": method}
    one, two = (trained(tmp_path / str(count), count, monkeypatch, **more) for count in (1, 2))
    losses = series(one, "loss/train/total")
    assert sum(losses[-3:]) < sum(losses[:3])  # an epoch each
    for name in ("loss/train/total", "metrics/eval/LanguageCrossEntropy"):
        assert series(two, name) == pytest.approx(series(one, name), rel=2e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_are_computed_again_in_lanes_give_the_bits_of_kept_activations(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"base": save(family, tmp_path / "base"), "method": "full", "precision": "fp32"}
    kept, again = (
        trained(tmp_path / str(on), 2, monkeypatch, checkpointing=on, training_duration="1ep", **common)
        for on in (False, True)
    )
    assert series(kept, "loss/train/total") == series(again, "loss/train/total")
    assert weights(kept) and weights(kept) == weights(again)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_layers_that_are_computed_again_in_bf16_give_the_losses_of_kept_activations(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"base": model("llama", tmp_path / "base"), "method": method, "precision": "bf16"}
    kept, again = (
        trained(tmp_path / str(on), 2, monkeypatch, checkpointing=on, **common) for on in (False, True)
    )
    # In full training an input that nothing keeps is copied to bf16 for each layer that multiplies it.
    rounding = 1e-3 if method == "full" else 0.0
    assert series(again, "loss/train/total") == pytest.approx(series(kept, "loss/train/total"), rel=rounding)


@pytest.mark.parametrize("packing", [True, False])
def test_each_lane_gets_a_piece_of_each_step(tmp_path: Path, packing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, collected = [], step_module.pieces_of_all

    def counted(*args: Any, **more: Any) -> Any:
        found = collected(*args, **more)
        pieces.append(len(found))
        return found

    monkeypatch.setattr(step_module, "pieces_of_all", counted)
    trained(tmp_path, 2, monkeypatch, max_tokens=2048, packing=packing, base=model("llama", tmp_path / "base"))
    assert len(pieces) == 9 and min(pieces) >= 2


METHODS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "lora", "precision": "bf16"},
    {"method": "qlora", "precision": "bf16"},
    {"method": "lora", "lora": {"use_dora": True}, "new_tokens": ("<new>",)},
]


@pytest.mark.parametrize("settings", METHODS, ids=["full", "lora-bf16", "qlora-bf16", "dora-new-tokens"])
def test_lanes_give_the_same_bits_every_time_and_after_a_stop(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"base": model("llama", tmp_path / "base"), "save_interval": "100ba", **settings}
    whole, again = (trained(tmp_path / name, 2, monkeypatch, **common) for name in ("whole", "again"))
    assert weights(whole) and weights(again) == weights(whole)

    parts: dict[str, Any] = {"rows": examples(24), "batch_size": 8, "training_duration": "3ep", **common}
    job, folder = make_job(tmp_path / "parts", **parts)
    asked = itertools.count()
    assert not run(job, folder, max_tokens=128, stop_requested=lambda: next(asked) == 4)
    job, resumed = make_job(
        tmp_path / "parts", **parts, attempt=2, resume_from=sorted(folder.checkpoints.glob("step-*"))
    )
    assert run(job, resumed, max_tokens=128)
    assert events(resumed, "MODEL_INITIALIZED")[0]["lanes"] == 2
    assert weights(resumed) == weights(whole)


@pytest.mark.parametrize("where", ["adapter", "attention"])
def test_a_model_that_draws_random_numbers_has_one_lane(tmp_path: Path, where: str) -> None:
    base = model("llama", tmp_path / "base", dropout=0.1 if where == "attention" else 0.0)
    lora = {"dropout": 0.1 if where == "adapter" else 0.0}
    job, folder = make_job(tmp_path, rows=examples(4), base=base, method="lora", lora=lora, training_duration="1ba")
    assert run(job, folder)
    assert events(folder, "MODEL_INITIALIZED")[0]["lanes"] == 1


def test_adapted_experts_have_one_lane(tmp_path: Path) -> None:
    job, folder = make_job(
        tmp_path, rows=examples(4), base=save("mixtral", tmp_path / "base"), method="lora", training_duration="1ba"
    )
    assert run(job, folder)
    assert events(folder, "MODEL_INITIALIZED")[0]["lanes"] == 1


def test_gradients_too_large_to_have_twice_leave_one_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "WAITING_GRADIENT_BYTES", 100_000)
    job, folder = make_job(tmp_path, rows=examples(4), base=model("llama", tmp_path / "base"), training_duration="1ba")
    assert run(job, folder)
    assert events(folder, "MODEL_INITIALIZED")[0]["lanes"] == 1


def test_lanes_together_hold_no_more_logits_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", 259 * 64)
    held = []

    def head_sees(_: Any, args: Any) -> None:
        held.append(args[0].reshape(-1, args[0].shape[-1]).shape[0])

    looked = loss_module.TokenLoss.look_at_head

    def look_at_head(self: loss_module.TokenLoss) -> None:
        looked(self)
        self.language_model.get_output_embeddings().register_forward_pre_hook(head_sees)

    monkeypatch.setattr(loss_module.TokenLoss, "look_at_head", look_at_head)
    base = model("llama", tmp_path / "base")
    for count, rows in ((1, 64), (2, 32)):
        trained(tmp_path / str(count), count, monkeypatch, base=base)
        steps = held[-30:]  # before them, the whole model was tried
        assert max(steps) == rows
        held.clear()


def test_results_come_in_order_and_only_few_are_made_ahead() -> None:
    lock, begun = Lock(), set()

    def slow_at_first(item: int) -> int:
        with lock:
            begun.add(item)
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    ahead = []
    results = []
    for result in Lanes(2).map(slow_at_first, range(100)):
        with lock:
            ahead.append(len(begun) - len(results))
        results.append(result)
    assert results == [item * item for item in range(100)]
    assert max(ahead) <= 5


def test_lanes_share_the_threads_and_the_caller_keeps_its_own() -> None:
    torch.set_num_threads(4)
    lanes = Lanes(2)
    assert list(lanes.map(lambda _: torch.get_num_threads(), range(8))) == [2] * 8
    assert torch.get_num_threads() == 4


def test_a_failing_piece_is_raised_once_no_lane_is_at_work() -> None:
    lock, at_work = Lock(), set()

    def second_fails(item: int) -> None:
        with lock:
            at_work.add(item)
        try:
            time.sleep(0.01)
            if item == 1:
                raise torch.OutOfMemoryError("planted")
        finally:
            with lock:
                at_work.discard(item)

    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        for _ in Lanes(3).map(second_fails, range(50)):
            pass
    assert not at_work
