"""`fm.plan` and ``ftctl plan`` on small models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

import fm
from fm import planning
from fm.cli.main import run
from fm.plans import Memory
from fm_local.plan import machine, options
from fm_local.plan.memory import Constants, Numbers, memory_of
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
    plan = fm.plan(base, data, num_processes=2, sharding="full", device="H200", price_per_hour=3.0)
    assert len({(option.method, option.sharding) for option in plan.options}) == 15
    assert (plan.requested.method, plan.requested.sharding) == ("lora", "full")
    assert plan.fits
    assert plan.cost == pytest.approx(2 * 3.0 * (plan.seconds or 0) / 3600)
    assert plan.requested.memory.reserved >= plan.requested.memory.allocated


def test_a_plan_for_more_processes_shares_out_what_is_sharded(base: Path, data: Path) -> None:
    def optimizer(processes: int, sharding: str) -> int:
        plan = fm.plan(base, data, method="full", num_processes=processes, sharding=sharding, device="H100")
        return plan.requested.memory.optimizer

    assert optimizer(2, "none") == optimizer(1, "none")
    assert optimizer(2, "full") == optimizer(1, "none") // 2


def test_zero_2_parts_what_is_not_computed_with_and_zero_3_all(base: Path, data: Path) -> None:
    options = fm.plan(base, data, method="full", num_processes=2, device="H100").options
    none, zero2, zero3 = (
        next(o.memory for o in options if (o.method, o.sharding) == ("full", sharding))
        for sharding in ("none", "zero2", "zero3")
    )
    assert (zero2.weights, zero3.weights) == (none.weights, none.weights // 2)
    assert zero2.gradients == zero3.gradients == none.gradients // 2
    # DeepSpeed steps a copy of the weights, and so parts three numbers instead of two moments.
    assert zero2.optimizer == zero3.optimizer == none.optimizer // 2 + none.weights // 2


def test_advice_comes_in_the_order_in_which_an_expert_thinks(base: Path, data: Path) -> None:
    plan = fm.plan(base, data, device="H100")
    order = ["small model", "prefer LoRA", "QLoRA", "sharding", "offload", "raise batch_size"]
    assert all(words in text for words, text in zip(order, plan.advice, strict=True))


def test_a_plan_has_nothing_that_a_create_refuses(base: Path, data: Path) -> None:
    plan = fm.plan(base, data, device="H200")
    assert {(o.sharding == "none", o.processes) for o in plan.options} == {(True, 1), (False, 2)}
    unsharded = fm.plan(base, data, optimizer="adafactor", num_processes=2, device="H200")
    assert {o.sharding for o in unsharded.options} == {"none"}
    assert not any("sharding" in text for text in unsharded.advice)


def needing(gigabytes: float) -> Memory:
    size = round(1e9 * gigabytes)
    return Memory(
        weights=size, gradients=0, optimizer=0, activations=0, logits=0, temporary=0, framework=0, reserved=size
    )


@pytest.mark.parametrize(
    ("method", "memory", "advice"),
    [
        # What LoRA takes is enough, and then less than that, for which only parting the weights is left.
        ("full", 8.0, "take method='lora'"),
        ("full", 4.0, "take method='qlora'"),
        ("lora", 4.0, "take method='qlora'"),
        ("full", 2.9, "take method='lora', sharding='full', num_processes=2"),
        ("qlora", 1.0, "take a smaller model"),
    ],
)
def test_what_does_not_fit_is_said_with_what_an_expert_would_try_first(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, method: Any, memory: float, advice: str
) -> None:
    sizes = {
        ("lora", "none"): 6.0, ("qlora", "none"): 3.0, ("full", "none"): 16.0, ("lora", "full"): 2.5,
        ("qlora", "full"): 2.0, ("full", "full"): 8.5,
    }

    def memory_of(_: object, method: str, sharding: str, *__: object, **___: object) -> Memory:
        return needing(sizes.get((method, sharding), 2.0))

    monkeypatch.setattr(options, "memory_of", memory_of)
    plan = fm.plan(base, data, method=method, device="H100", device_memory=f"{memory + 0.54}GB")
    assert plan.advice[-1].endswith(advice)
    assert plan.fits is False


@pytest.mark.parametrize(
    ("needed", "request_", "remedy"),
    [
        (8.0, {"batch_size": 1}, "take a smaller context_length"),
        (8.0, {"batch_size": 8, "sharding": "full", "num_processes": 2}, "take a smaller batch_size or context_length"),
        (8.0, {"batch_size": 8}, None),  # which can go on in smaller pieces
        (7.0, {"batch_size": 1}, None),
    ],
)
def test_what_fits_by_less_than_plans_err_by_is_called_tight_where_nothing_smaller_is_left(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, needed: float, request_: dict[str, Any], remedy: str | None
) -> None:
    monkeypatch.setattr(options, "memory_of", lambda *_, **__: needing(needed))
    plan = fm.plan(base, data, device="H100", device_memory="10GB", **request_)
    said = [text for text in plan.advice if text.startswith("it is tight")]
    assert plan.fits and (said[0].endswith(remedy) if remedy else not said)


def test_an_example_too_long_for_the_memory_is_refused_however_small_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FM_AGENT", "off")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    base = models.tokenizer(models.model("llama", tmp_path / "base", hidden=64))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 18}))
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a", "response": "b" * 200_000}) + "\n")
    for module in (planning, machine):
        monkeypatch.setattr(module, "main_memory", lambda: 10**9)
    request: dict[str, Any] = {"task_type": "INSTRUCTION_FINETUNE", "method": "lora"}
    with pytest.raises(fm.RequestError, match=r"one example of 200,00[0-9] tokens would take"):
        fm.create(base, long, **request)
    assert fm.create(base, long, context_length=256, **request).status is fm.Status.QUEUED


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


def test_a_plan_of_a_preset_has_only_what_presets_can_be_trained_with(data: Path) -> None:
    plan = fm.plan("fm/nano-llama", data, method="full", device="cpu")
    assert {option.method for option in plan.options} == {"full"}
    assert not any("LoRA" in text for text in plan.advice)


def test_a_wall_clock_plan_for_a_gpu_without_data_sheet_is_shown(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = fm.plan(base, data, device="T4", device_memory="16GB", duration="1h")
    assert (plan.seconds, plan.tokens_per_second) == (3600.0, None)
    assert "about 1h" in str(plan)
    assert run(["plan", str(base), str(data), "--device", "T4", "--device-memory", "16GB", "--duration", "1h"]) == 0
    assert "about 1h" in capsys.readouterr().out


def test_processes_on_a_cpu_share_one_device_and_its_price(base: Path, data: Path) -> None:
    one, four = (
        fm.plan(base, data, device="cpu", device_memory="16GB", price_per_hour=1.0, num_processes=count, duration="1h")
        for count in (1, 4)
    )
    assert (four.devices, four.processes, four.process_memory) == (1, 4, 4 * 10**9)
    assert one.cost == four.cost == 1.0


def test_a_create_near_the_memory_traces_a_step_before_it_refuses(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FM_AGENT", "off")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(planning, "_PLAINLY_SMALL", 0)
    prepared = fm.validate(base, data, method="full")
    # Of what a training takes at least, three times as much: a process on a CPU alone needs more.
    need = planning.least_bytes(prepared.request, planning.parameters_of(prepared.model) or 0)
    for module in (planning, machine):
        monkeypatch.setattr(module, "main_memory", lambda: int(3 * need) + (1 << 20))
    with pytest.raises(fm.RequestError, match=r"a step with one example of [0-9]+ tokens would take"):
        fm.create(base, data, method="full")
    for module in (planning, machine):
        monkeypatch.setattr(module, "main_memory", lambda: 64 << 30)
    assert fm.create(base, data, method="full").status is fm.Status.QUEUED


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("L40S", 48), ("NVIDIA L4", 24), ("A100", 80), ("A100-40GB", 40), ("NVIDIA A100-SXM4-80GB", 80), ("RTX 4090", 24),
     ("NVIDIA H100 80GB HBM3", 80), ("NVIDIA RTX A6000", 48)],
)
def test_a_gpus_memory_is_that_of_its_name(name: str, gigabytes: int) -> None:
    assert machine.find_machine(name, None, bf16=True, processes=1).memory == gigabytes * 10**9


@pytest.mark.parametrize("name", ["L40", "RTX A1000", "A10G", "T4", "A100X"])
def test_a_gpu_is_not_taken_for_another_whose_name_it_contains(name: str) -> None:
    with pytest.raises(fm.RequestError, match="no data sheet"):
        machine.find_machine(name, None, bf16=True, processes=1)


def test_the_largest_gpu_of_a_machine_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [SimpleNamespace(name="NVIDIA T400", total_memory=4 << 30),
             SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 << 30)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: cards[index])
    assert machine.find_machine(None, None, bf16=True, processes=1).memory == 80 << 30


HELD_OUT = [("Llama-2-7B", "lora", 21.35), ("Llama-3.2-3B", "full", 23.1), ("Llama-3.1-70B", "lora", 27.6)]


@pytest.mark.parametrize(("model", "method", "gib"), HELD_OUT)
def test_published_figures_that_no_constant_was_fitted_on_are_met(model: str, method: str, gib: float) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import plan_accuracy
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    wanted = (model, method, gib)
    index, row = next(
        (n, row) for n, row in enumerate(plan_accuracy.ROWS) if (row.model, row.method, row.measured) == wanted
    )
    assert index % 2 == 1, "fitted on"
    constants = Constants()
    found = plan_accuracy.estimate(
        row, plan_accuracy.predict(row), constants.framework / 2**30, constants.fragmentation
    )
    assert found == pytest.approx(gib, rel=0.20)
    published = {line["row"]: line["predicted_gib"] for line in json.loads(plan_accuracy.RESULT.read_text())["rows"]}
    assert found == pytest.approx(published[row.name], abs=0.01), "run benchmarks/plan_accuracy.py again"


def test_offload_leaves_no_weights_gradients_or_states_on_the_device() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=2, vocab_size=128
    )
    traced = trace(config, Step(2, 32, accumulating=True))
    memory = memory_of(
        traced, "full", "full-offload", Numbers(4), devices=2, accumulating=True, framework=0, fragmentation=0
    )
    assert memory.weights == memory.gradients == memory.optimizer == 0
    assert memory.temporary > 0
