"""Opening, merging and exporting what was trained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fm.creation import RequestWarning
from fm.errors import Conflict, FMError, NotFound, RequestError, Unsupported
from fm.files import read_manifest
from fm.types import ModelRef
from fm_local.models import export as export_module
from fm_local.models.export import export
from fm_local.models.load import load_causal_lm, open_model
from fm_local.models.tokenizer import load_tokenizer
from support.adapters import registered, trained
from support.models import events, examples, make_job, model, run


def architecture_of(folder: Path) -> tuple[list[str], set[str]]:
    """The classes that a model's configuration names, and the names of its tensors."""
    names = json.loads((folder / "config.json").read_text())["architectures"]
    return names, set(load_file(folder / "model.safetensors"))


def test_an_adapter_chats_and_generates_on_its_base_the_same_with_the_same_seed(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    tuned = open_model(trained(tmp_path, base), base_path=base, device="cpu")
    assert tuned.generate("abc", max_new_tokens=5) == tuned.generate("abc", max_new_tokens=5)
    sampled = {tuned.chat("abc", max_new_tokens=20, temperature=1.0, seed=seed) for seed in (1, 1, 2)}
    assert len(sampled) == 2
    turns = [{"role": "user", "content": "abc"}]
    assert tuned.chat(turns, max_new_tokens=9) == tuned.chat("abc", max_new_tokens=9)


def test_sampling_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    tuned = open_model(trained(tmp_path, model("llama", tmp_path / "base"), method="full"), device="cpu")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    tuned.generate("abc", max_new_tokens=5, temperature=1.0)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("gpt2", True)])
def test_a_merged_export_is_loaded_by_transformers_alone_and_computes_the_same(
    tmp_path: Path, family: str, tied: bool
) -> None:
    base = model(family, tmp_path / "base", tied=tied)
    adapter = trained(tmp_path, base)
    out = export(adapter, base, tmp_path / "out", merge=True)
    ids = torch.randint(0, 259, (1, 20))
    with torch.no_grad():
        unmerged = open_model(adapter, base_path=base, device="cpu").model(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(ids).logits
        untrained = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    torch.testing.assert_close(merged, unmerged, rtol=1e-3, atol=1e-3)
    assert (merged - untrained).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(out).chat_template
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == json.loads((adapter / "generation_config.json").read_text())["eos_token_id"]
    assert not (out / "adapter_config.json").exists()
    # Engines choose their own implementation by these names.
    architecture, names = architecture_of(base)
    assert architecture_of(out) == (architecture, names)
    assert open_model(out, device="cpu").generate("abc", max_new_tokens=3) is not None


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_trap_27_an_adapter_on_one_of_two_tied_layers_survives_merging(tmp_path: Path, target: str) -> None:
    base = model("llama", tmp_path / "base", tied=True)
    adapter = trained(tmp_path, base, lora={"target_modules": [target, "q_proj"]})
    out = export(adapter, base, tmp_path / "out", merge=True)
    ids = torch.randint(0, 259, (1, 20))
    with torch.no_grad():
        unmerged = open_model(adapter, base_path=base, device="cpu").model(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    torch.testing.assert_close(merged, unmerged, rtol=1e-3, atol=1e-3)


def test_a_merge_that_changes_the_logits_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model("llama", tmp_path / "base")
    adapter = trained(tmp_path, base)
    monkeypatch.setattr(export_module, "_MOST_DIVERGENCE", -1.0)
    with pytest.raises(FMError, match="changed its logits"):
        export(adapter, base, tmp_path / "out", merge=True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_files_that_hold_something_else_than_was_merged_are_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model("llama", tmp_path / "base")
    adapter = trained(tmp_path, base)
    monkeypatch.setattr(export_module, "load_causal_lm", lambda *_, **__: load_causal_lm(base))
    with pytest.raises(FMError, match=r"saving what .* changed its logits"):
        export(adapter, base, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("request_", "remark"),
    [
        ({"lora": {"rank": 16}}, None),
        ({"lora": {"rank": 16, "use_rslora": True, "target_modules": ["q_proj", "lm_head"]}}, None),
        ({"lora": {"rank": 20}}, "--max-lora-rank 32"),
        ({"lora": {"rank": 513, "target_modules": ["q_proj"]}}, "no rank above 512"),
        ({"lora": {"use_dora": True}}, "no DoRA: export it with --merge"),
        ({"new_tokens": ["<a>"]}, "no trained rows .*: export it with --merge"),
    ],
    ids=["usual", "head", "rank", "high-rank", "dora", "new-tokens"],
)
def test_an_unmerged_export_warns_of_what_vllm_would_refuse(
    tmp_path: Path, request_: dict[str, Any], remark: str | None
) -> None:
    base = model("llama", tmp_path / "base")
    adapter = trained(tmp_path, base, **request_)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RequestWarning)
        export(adapter, base, tmp_path / "out", merge=False)
    found = [str(warning.message) for warning in caught if warning.category is RequestWarning]
    assert len(found) == (remark is not None) and re.search(remark or "", "".join(found))
    export(adapter, base, tmp_path / "merged", merge=True)


def test_a_merge_leaves_the_standard_output_to_data(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    places = repr(str(trained(tmp_path, base))), repr(str(base)), repr(str(tmp_path / "out"))
    code = "from pathlib import Path; from fm_local.models.export import export; export({}, {}, {}, merge=True)"
    command = [sys.executable, "-c", code.format(*(f"Path({place})" for place in places))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == ""
    assert (tmp_path / "out" / "config.json").exists()


def test_an_unmerged_export_names_the_path_of_its_base(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    out = export(trained(tmp_path, base), base, tmp_path / "out", merge=False)
    assert read_manifest(out, verify=True)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert any("lora" in name for name, _ in loaded.named_parameters())


def test_exporting_over_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(Conflict):
        export(model("llama", tmp_path / "base"), None, tmp_path / "out", merge=False)
    assert (tmp_path / "out" / "mine.txt").exists()


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    adapter = trained(tmp_path, model("llama", tmp_path / "base"))
    with pytest.raises(RequestError, match="is an adapter of"):
        open_model(adapter)


def test_an_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    adapter = trained(tmp_path, model("llama", tmp_path / "base"))
    with pytest.raises(RequestError, match="does not fit"):
        open_model(adapter, base_path=model("gpt2", tmp_path / "other"))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    """CVE-2025-32434: torch.load executed what a file says, even with weights_only."""
    base = model("llama", tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="pickled"):
        load_causal_lm(base)


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """CVE-2026-58116: a model that is named is loaded, and the code in its folder runs."""
    base = model("llama", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    bring_code(base, "config.json", AutoConfig="code.C", AutoModelForCausalLM="code.M", **config)
    with pytest.raises(Unsupported):
        load_causal_lm(base)


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    bring_code(tmp_path, "tokenizer_config.json", AutoTokenizer=["code.T", "code.T"], tokenizer_class="T")
    bring_code(tmp_path, "config.json", AutoConfig="code.C")
    with pytest.raises(Unsupported):
        load_tokenizer(tmp_path)


def bring_code(folder: Path, name: str, **values: Any) -> None:
    """Makes `name` point to classes in a module beside it, which ends the process that imports it."""
    auto_map = {key: values.pop(key) for key in list(values) if key.startswith("Auto")}
    (folder / name).write_text(json.dumps({**values, "model_type": "strange", "auto_map": auto_map}))
    (folder / "code.py").write_text("raise SystemExit('was run')")


def test_missing_weights_are_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"up_proj"):
        load_causal_lm(base)
    with pytest.raises(NotFound):
        load_causal_lm(tmp_path)


def test_custom_weights_replace_the_bases_and_must_fit(tmp_path: Path) -> None:
    base, other = model("llama", tmp_path / "base"), model("llama", tmp_path / "other", seed=8)
    weights = other / "model.safetensors"
    first = trained(tmp_path / "a", base, method="full", custom_weights_path=str(weights), learning_rate=1e-9)
    ours, theirs = load_file(first / "model.safetensors"), load_file(weights)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    wrong = model("qwen2", tmp_path / "wrong") / "model.safetensors"
    with pytest.raises(RequestError, match="custom_weights_path"):
        trained(tmp_path / "b", base, method="full", custom_weights_path=str(wrong))


def test_lora_on_a_registered_adapter_goes_on_from_its_weights(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    first = trained(tmp_path / "a", base)
    again = trained(tmp_path / "b", registered(first, base), learning_rate=1e-9)
    config = json.loads((again / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "b"
    one, two = load_file(first / "adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


@pytest.mark.parametrize("request_", [{"lora": {"rank": 4}}, {"lora": {"alpha": 8}}, {"method": "full"}])
def test_an_adapter_of_another_shape_has_to_be_merged_first(tmp_path: Path, request_: dict[str, Any]) -> None:
    base = model("llama", tmp_path / "base")
    first = trained(tmp_path / "a", base)
    with pytest.raises(RequestError, match="merge"):
        trained(tmp_path / "b", registered(first, base), **request_)


def test_a_preset_is_trained_from_random_weights_and_reopens_with_its_tokenizer(tmp_path: Path) -> None:
    preset = ModelRef(kind="preset", name="fm/nano-llama")
    job, folder = make_job(tmp_path, rows=examples(8), base=preset, training_duration="2ba", learning_rate=None)
    assert run(job, folder)
    assert events(folder, "MODEL_INITIALIZED")[0]["learning_rate"] == 3e-3
    assert open_model(folder.final, device="cpu").generate("abc", max_new_tokens=3) is not None
    with pytest.raises(RequestError, match="random weights"):
        trained(tmp_path / "lora", preset)


def test_opening_a_model_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = model("llama", tmp_path / "base")
    capfd.readouterr()
    load_causal_lm(path)
    assert capfd.readouterr() == ("", "")
