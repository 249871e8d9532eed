"""Adapters that are trained on, and rows for new tokens: what is taken over, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from fm.errors import RequestError
from fm.files import read_manifest
from fm_local.models.load import open_model
from support.adapters import FORMS, registered, trained
from support.models import VOCABULARY, examples, make_job, model, run, series


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_adapter_is_trained_on_from_its_weights(tmp_path: Path, form: str) -> None:
    base = model("llama", tmp_path / "base")
    first = trained(tmp_path / "a", base, **FORMS[form])
    # The tokenizer that the first training saved is the one that the second is checked with.
    settings = {key: value for key, value in FORMS[form].items() if key != "new_tokens"}
    again = trained(tmp_path / "b", registered(first, base), words=first, learning_rate=1e-9, **settings)
    one, two = load_file(first / "adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    manifest, before = read_manifest(again), read_manifest(first)
    assert manifest and before and manifest["base_digest"] == before["base_digest"]


@pytest.mark.parametrize(
    "change", [{"rank": 4}, {"alpha": 8.0}, {"use_rslora": True}, {"use_dora": True}, {"target_modules": ("q_proj",)}]
)
def test_an_adapter_of_another_shape_is_refused_and_its_shape_named(tmp_path: Path, change: dict[str, Any]) -> None:
    base = model("llama", tmp_path / "base")
    first = trained(tmp_path / "a", base)
    with pytest.raises(RequestError, match=r"rank 16, alpha 32.*\n.*merge it first"):
        trained(tmp_path / "b", registered(first, base), lora=change)


def test_an_adapter_without_the_new_tokens_that_are_asked_for_is_refused(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    first = trained(tmp_path / "a", base)
    with pytest.raises(RequestError, match="merge it first"):
        trained(tmp_path / "b", registered(first, base), words=first, new_tokens=["<c>"])


def test_new_rows_begin_as_the_mean_and_only_they_are_saved(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    adapter = trained(tmp_path, base, new_tokens=["<a>", "<|turn|>"], learning_rate=1e-9)
    weights = load_file(adapter / "adapter_model.safetensors")
    rows = {name: tensor for name, tensor in weights.items() if "trainable_tokens" in name}
    known = load_file(base / "model.safetensors")
    assert sorted(tensor.shape for tensor in rows.values()) == [(2, 32), (2, 32)]
    for layer in ("model.embed_tokens", "lm_head"):
        old, new = next(tensor for name, tensor in rows.items() if layer in name)
        torch.testing.assert_close(new, known[f"{layer}.weight"].mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(old, known[f"{layer}.weight"][257], rtol=1e-4, atol=1e-6)
    assert not any("embed_tokens.weight" in name or "lm_head.weight" in name for name in weights)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.encode("x<a>y", add_special_tokens=False)[1] == VOCABULARY
    assert tokenizer.decode([VOCABULARY], skip_special_tokens=True) == "<a>"


def test_new_tokens_are_learned_with_an_adapter(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    rows = [([*ids, VOCABULARY], [*mask, True]) for ids, mask in examples(8)]
    job, folder = make_job(
        tmp_path, rows=rows, base=base, method="lora", new_tokens=["<a>"], learning_rate=1e-2, training_duration="20ba"
    )
    run(job, folder)
    losses = series(folder, "loss/train/total")
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("tied", [False, True])
def test_a_full_training_with_new_tokens_saves_a_larger_model_that_reopens(tmp_path: Path, tied: bool) -> None:
    base = model("llama", tmp_path / "base", tied=tied)
    final = trained(tmp_path, base, method="full", new_tokens=["<a>"], learning_rate=1e-3)
    tuned = open_model(final, device="cpu")
    assert tuned.model.get_input_embeddings().num_embeddings == VOCABULARY + 1 == len(tuned.tokenizer)
    assert tuned.model.get_output_embeddings().weight.shape[0] == VOCABULARY + 1
    assert json.loads((final / "config.json").read_text())["vocab_size"] == VOCABULARY + 1


def test_a_head_with_an_adapter_and_new_rows_at_once_is_refused(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    with pytest.raises(RequestError, match="lm_head"):
        trained(tmp_path, base, new_tokens=["<a>"], lora={"target_modules": ("lm_head", "q_proj")})
