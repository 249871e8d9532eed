"""Planning over all model families that the trainer is tested with, and over layers of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import fm
from fm_local.plan import tracing
from fm_local.plan.tracing import Step, trace
from support import models
from support.families import FAMILIES, save
from support.rows import chats


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_planned_for_with_every_method(tmp_path: Path, family: str, precision: str) -> None:
    base = models.tokenizer(save(family, tmp_path / "base"))
    lora = {"target_modules": ["in_proj", "x_proj"] if family == "mamba" else "all-linear"}
    plan = fm.plan(base, chats(tmp_path / "train.jsonl"), lora=lora, precision=precision, device="cpu")
    assert {option.method for option in plan.options} == {"lora", "qlora", "full"}
    assert all(option.memory.activations > 0 for option in plan.options)
    count = AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert plan.parameters == count


def test_a_method_that_cant_be_applied_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    base, data = models.tokenizer(save("mamba", tmp_path / "base")), chats(tmp_path / "train.jsonl")
    plan = fm.plan(base, data, method="full", device="cpu")
    assert {option.method for option in plan.options} == {"full"}
    with pytest.raises(fm.RequestError, match="target_modules"):
        fm.plan(base, data, method="lora", device="cpu")


def test_what_cant_be_traced_is_said_to_be_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(tracing, "_pass", fail)
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(fm.errors.Unsupported, match="data-dependent"):
        trace(config, Step(1, 8))


SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "head_dim": 16, "max_position_embeddings": 256, "pad_token_id": None,
}
MIXED = {
    "lfm2": {"num_hidden_layers": 8, "block_multiple_of": 16,
             "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"]},
    "gemma3_text": {"num_hidden_layers": 9, "sliding_window": 6, "query_pre_attn_scalar": 16},
    # Attention in every fourth layer, state spaces in the others, experts in every second.
    "jamba": {"num_hidden_layers": 8, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2,
              "mamba_d_state": 8},
}


@pytest.mark.parametrize("kind", MIXED)
def test_layers_of_several_kinds_are_counted_as_often_as_they_occur(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, step = AutoConfig.for_model(kind, **SIZES | MIXED[kind]), Step(2, 20, accumulating=True)
    found = trace(config, step)
    monkeypatch.setattr(tracing, "_MOST_DEPTH", 100)  # all layers, as they are
    monkeypatch.setattr(tracing, "_SHORT", 20)  # the whole width, also where the model loops over it
    exact = trace(config, step)
    assert (found.trained, found.layers) == (exact.trained, exact.layers)
    assert found.saved == pytest.approx(exact.saved, rel=0.01)
    assert max(found.forward, found.late) == pytest.approx(max(exact.forward, exact.late), rel=0.03)


def test_long_rows_of_a_model_that_loops_over_tokens_are_planned_for_in_seconds() -> None:
    config = AutoConfig.for_model(
        "mamba", hidden_size=32, vocab_size=300, state_size=8, num_hidden_layers=24, time_step_rank=4
    )
    short, long = (trace(config, Step(1, width, dtype=torch.float32)) for width in (1000, 2000))
    assert long.saved == pytest.approx(2 * short.saved, rel=0.05)
