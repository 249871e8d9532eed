"""`fm.plan` and ``ftctl plan`` on small models."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

import fm
from fm.cli.main import run
from fm_local.plan.memory import Numbers, memory_of
from fm_local.plan.tracing import Step, trace
from support import models
from support.rows import chats

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats(tmp_path / "train.jsonl")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return models.tokenizer(models.model("llama", tmp_path / "base"))


def test_a_plan_has_every_method_and_layout_with_the_one_asked_for_marked(base: Path, data: Path) -> None:
    plan = fm.plan(base, data, method="qlora", sharding="full_shard", device="H200", price_per_hour=3.0)
    assert len({(option.method, option.sharding) for option in plan.options}) == 9
    assert (plan.requested.method, plan.requested.sharding) == ("qlora", "full_shard")
    assert plan.fits
    assert plan.cost == pytest.approx(3.0 * (plan.seconds or 0) / 3600)
    assert plan.requested.memory.reserved >= plan.requested.memory.allocated


def test_a_plan_for_more_processes_shares_out_what_is_sharded(base: Path, data: Path) -> None:
    def optimizer(processes: int, sharding: str | None) -> int:
        plan = fm.plan(base, data, method="full", num_processes=processes, sharding=sharding, device="H100")
        return plan.requested.memory.optimizer

    assert optimizer(2, None) == optimizer(1, None)
    assert optimizer(2, "full_shard") == optimizer(1, None) // 2


def test_advice_comes_in_the_order_in_which_an_expert_thinks(base: Path, data: Path) -> None:
    plan = fm.plan(base, data, device="H100")
    order = ["small model", "prefer LoRA", "QLoRA", "sharding", "offload", "raise the micro-batch"]
    assert all(words in text for words, text in zip(order, plan.advice, strict=True))


def test_what_does_not_fit_is_said_with_what_does(base: Path, data: Path) -> None:
    plan = fm.plan(base, data, method="full", device="H100", device_memory="700MB")
    assert not plan.fits
    assert "does not fit" in plan.advice[-1]


def test_steps_and_tokens_are_near_those_that_the_trainer_makes(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a" * (5 + n), "response": "b" * (n % 7 + 1)} for n in range(50)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    plan = fm.plan(base, path, task_type="INSTRUCTION_FINETUNE", batch_size=8, training_duration="3ep", device="cpu")
    # A byte is a token here, and each row ends in one more.
    exact = sum(len(row["prompt"]) + len(row["response"]) + 1 for row in rows)
    assert plan.steps == 21
    assert plan.tokens == pytest.approx(3 * exact, rel=0.02)


def test_a_dry_run_has_the_plan(base: Path, data: Path) -> None:
    assert fm.validate(base, data).plan.model == str(base)


def test_planning_loads_no_weights_and_the_command_prints_json(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in base.glob("*.safetensors"):
        file.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert run(["plan", str(base), str(data), "--device", "A100", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "A100"


def test_a_device_without_data_sheet_needs_its_memory(base: Path, data: Path) -> None:
    with pytest.raises(fm.RequestError, match="device"):
        fm.plan(base, data, device="Abacus")
    plan = fm.plan(base, data, device="Abacus", device_memory="24GB")
    assert plan.seconds is None
    assert plan.requested.fits


def test_a_published_figure_is_met() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import plan_accuracy
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    row = next(row for row in plan_accuracy.ROWS if row.model == "Llama-3.2-3B" and row.measured == 24.9)
    assert plan_accuracy.predict(row).allocated / 2**30 == pytest.approx(24.9, rel=0.08)


def test_the_committed_accuracy_is_within_what_is_promised() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "plan_accuracy.json").read_text())["held_out"]
    assert found["median_error"] <= 0.08
    assert found["worst_error"] <= 0.20


def test_offload_leaves_no_weights_gradients_or_states_on_the_device() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=2, vocab_size=128
    )
    traced = trace(config, Step(2, 32, accumulating=True))
    memory = memory_of(
        traced, "full", "offload", Numbers(4), devices=2, layers=6, accumulating=True, framework=0, fragmentation=0
    )
    assert memory.weights == memory.gradients == memory.optimizer == 0
    assert memory.temporary > 0
