"""Two processes that hold the model together, or each by itself, train as one does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fm
from fm.layout import StageFolder
from fm_local.trainer import evaluate, zero
from fm_local.trainer.loss import TokenLoss
from support.fresh import in_fresh_processes
from support.models import events, examples, lines, make_job, model, run, series
from support.ranks import run_ranks, train

PIECES = """from fm_local.trainer import device
device.micro_batch_tokens = lambda _: 50
device.rows_of_logits = lambda _: 1
"""
"""So few tokens at once that a step has several pieces, of which the processes have different numbers, and so few rows
of logits that most pieces have several blocks."""
FIRST_SAYS = "from fm_local.plan import budget; budget.budget_of = lambda _: budget.Budget(50)"
"""The same, by what the first process alone is asked for."""
RECOMPUTE = "from fm_local.plan import budget; budget.budget_of = lambda _: budget.Budget(50, checkpointing=True)"
SHORT_ANSWERS = "from fm_local.trainer import evaluate; evaluate._SAMPLE_TOKENS = 8"
ALL_PARTED = "from fm_local.trainer import zero; zero.KEPT_WHOLE = 0"
TROUBLE = """
from fm_local.trainer import loop
steps = []
def once_at_fifteen(at, result):
    steps.append(at.step)
    return 14 if steps.count(14) == 1 and at.step == 14 else None
loop.trouble_since = once_at_fifteen
"""
"""Step 15 is taken for the end of a spike when it is computed for the first time, and is not applied then."""
COMPARED = ("loss/train/total", "grad_norm", "metrics/train/TokenAccuracy", "metrics/eval/LanguageCrossEntropy")


def request(base: Path, **more: Any) -> dict[str, Any]:
    # Steps of three rows, and of one at each epoch's end: the second process then has no share.
    return {
        "base": base,
        "rows": examples(31),
        "held_out": examples(5, seed=2),
        "batch_size": 3,
        "training_duration": "20ba",
        "save_interval": "10ba",
        **more,
    }


def assert_same(one: StageFolder, other: StageFolder, *, rel: float = 1e-5) -> None:
    """Equal curves, and files of equal names with equal tensors in them."""
    for name in COMPARED:
        assert series(one, name) == pytest.approx(series(other, name), rel=rel), name
    files, others = ({file.relative_to(x.path) for file in x.path.rglob("*.safetensors")} for x in (one, other))
    assert files == others
    for file in files:
        first, second = load_file(one.path / file), load_file(other.path / file)
        assert first.keys() == second.keys()
        for name in first:
            # AdamW divides by a gradient's size: rounding shows fully in weights whose gradient is nearly 0.
            torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sharding", ["none", "full", "zero2", "zero3"])
@pytest.mark.parametrize(("method", "tied"), [("lora", False), ("full", True), ("qlora", False)])
def test_two_processes_equal_one_over_twenty_steps(
    tmp_path: Path, method: str, tied: bool, sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = PIECES
    if sharding == "zero3":  # which gathers weight by weight for every token
        before += f"\n{SHORT_ANSWERS}"
        monkeypatch.setattr(evaluate, "_SAMPLE_TOKENS", 8)
    common = request(
        model("llama", tmp_path / "base", tied=tied), method=method, eval_prompts=["abc"], weight_decay=0.1
    )  # fmt: skip
    job, one = make_job(tmp_path / "one", **common)
    run(job, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding=sharding)
    run_ranks(two, before=before)
    assert_same(one, two)
    assert len(series(two, "grad_norm")) == 20
    assert events(two, "MODEL_INITIALIZED")[0]["packed"]
    answers = [event["samples"] for event in events(one, "SAMPLES_GENERATED")]
    assert [event["samples"] for event in events(two, "SAMPLES_GENERATED")] == answers
    assert answers


@pytest.mark.parametrize(
    ("method", "sharding"),
    [("lora", "full"), ("full", "full"), ("qlora", "full"), ("lora", "zero2"), ("full", "zero3")],
)
def test_trap_29_a_sharded_checkpoint_is_whole_and_goes_on_with_any_number_of_processes(
    tmp_path: Path, method: str, sharding: str
) -> None:
    common = request(model("llama", tmp_path / "base"), method=method)
    job, one = make_job(tmp_path / "one", **common)
    run(job, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding=sharding)
    run_ranks(two)
    assert_same(one, two)

    def half(folder: StageFolder) -> dict[str, Any]:
        return {**common, "resume_from": [folder.checkpoint(10)], "attempt": 2}

    job, on_one = make_job(tmp_path / "two", **half(two))
    run(job, on_one)
    _, on_two = make_job(tmp_path / "one", **half(one), num_processes=2, sharding=sharding)
    run_ranks(on_two)
    for resumed in (on_one, on_two):
        assert events(resumed, "TRAIN_STARTED")[0]["step"] == 10
        for name in ("loss/train/total", "grad_norm"):
            assert series(resumed, name) == pytest.approx(series(one, name)[10:], rel=1e-5), name
    assert_same(on_one, on_two)


def test_the_first_process_says_how_much_all_compute_at_once(tmp_path: Path) -> None:
    common = request(model("llama", tmp_path / "base"), method="lora")
    alone, one = make_job(tmp_path / "one", **common)
    assert run(alone, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding="full")
    run_ranks(two, before=FIRST_SAYS)  # processes with unequal numbers of pieces would wait for each other
    assert_same(one, two)


@pytest.mark.parametrize(
    ("method", "sharding"), [("lora", "full"), ("full", "full"), ("lora", "full-offload"), ("lora", "zero3")]
)
def test_sharded_layers_that_are_computed_again_train_the_same(tmp_path: Path, method: str, sharding: str) -> None:
    common = request(model("llama", tmp_path / "base"), method=method)
    job, one = make_job(tmp_path / "one", **common)
    run(job, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding=sharding)
    run_ranks(two, before=f"{PIECES}\n{RECOMPUTE}\n{ALL_PARTED}")
    assert [said["checkpointing"] for said in events(two, "MODEL_INITIALIZED")] == [True]
    assert_same(one, two)


@pytest.mark.parametrize(("saved_at", "back_to"), [("10ba", 10), ("20ba", 14)])
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_a_step_that_is_looked_at_and_not_taken_leaves_nothing_behind(
    tmp_path: Path, sharding: str, saved_at: str, back_to: int
) -> None:
    common = request(model("llama", tmp_path / "base"), method="full", save_interval=saved_at)
    _, one = make_job(tmp_path / "one", **common)
    in_fresh_processes(train, one, TROUBLE)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding=sharding)
    run_ranks(two, before=f"{PIECES}\n{TROUBLE}")
    assert_same(one, two)
    (warning,) = events(two, "WARNING")
    assert warning["back_to"] == back_to


def test_a_trainer_without_deepspeed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(fm.MissingExtra, match=r"ftctl\[deepspeed\]"):
        zero.part_weights(TokenLoss(torch.nn.Linear(1, 1), head_apart=False), torch.device("cpu"))


@pytest.mark.parametrize("sharding", ["full", "zero3"])
def test_the_best_weights_are_restored_into_a_sharded_model(tmp_path: Path, sharding: str) -> None:
    # The first steps learn, and then the rate is so high that all is lost.
    common = request(
        model("llama", tmp_path / "base"), learning_rate=0.03, warmup=0.9, register_checkpoint="best",
        eval_data_path="data.jsonl",
        eval_interval="2ba", save_interval="2ba",
    )  # fmt: skip
    job, one = make_job(tmp_path / "one", **common)
    run(job, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding=sharding)
    run_ranks(two)
    (best,) = {event["message"] for event in lines(two.events) if event["type"] == "TRAIN_FINISHED"}
    assert "the weights are those of step" in best
    saved, expected = (load_file(folder.final / "model.safetensors") for folder in (two, one))
    for name in expected:
        torch.testing.assert_close(saved[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sharding", ["full", "zero2", "zero3"])
def test_in_bf16_shards_are_gathered_in_half_and_summed_whole(tmp_path: Path, sharding: str) -> None:
    common = request(model("llama", tmp_path / "base"), precision="bf16")
    job, one = make_job(tmp_path / "one", **common)
    run(job, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2, sharding=sharding)
    run_ranks(two)
    assert series(two, "loss/train/total") == pytest.approx(series(one, "loss/train/total"), rel=2e-2)
    assert {tensor.dtype for tensor in load_file(two.checkpoint(20) / "trainable.safetensors").values()} == {
        torch.float32
    }
