"""LoRA in all its forms, QLoRA and full training: the same promises for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fm.errors import FMError, RequestError
from fm.files import seal
from fm_local.models.export import export
from fm_local.models.load import load_causal_lm, open_model
from fm_local.models.nf4 import load_nf4
from fm_local.trainer.rates import default_rate, rate_warning
from support.adapters import FORMS, logits_of, trained
from support.fresh import in_fresh_processes
from support.models import VOCABULARY, events, examples, make_job, model, run, series

CPU = torch.device("cpu")


def keep_logits(adapter: Path, base: Path, ids: list[list[int]], out: Path) -> int:
    torch.save(logits_of(open_model(adapter, base_path=base, device="cpu").model, torch.tensor(ids)), out)
    return 0


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_trap_26_and_27_each_form_of_adapter_reopens_in_a_new_process_and_merges_to_the_same_logits(
    tmp_path: Path, form: str, tied: bool
) -> None:
    base = model("llama", tmp_path / "base", tied=tied)
    adapter = trained(tmp_path, base, **FORMS[form])
    ids = torch.arange(VOCABULARY + len(FORMS[form].get("new_tokens", ())))[None, -40:]
    here = logits_of(open_model(adapter, base_path=base, device="cpu").model, ids)
    out = tmp_path / "logits.pt"
    in_fresh_processes(keep_logits, adapter, base, ids.tolist(), out)
    torch.testing.assert_close(torch.load(out), here, rtol=1e-5, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(export(adapter, base, tmp_path / "merged", merge=True))
    torch.testing.assert_close(logits_of(merged, ids), here, rtol=1e-3, atol=1e-3)
    assert divergence(here[..., :VOCABULARY], logits_of(load_causal_lm(base), ids % VOCABULARY)) > 1e-2
    assert merged.get_input_embeddings().num_embeddings == here.shape[-1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_trap_28_a_qlora_adapter_merges_into_the_base_as_its_files_have_it(tmp_path: Path, family: str) -> None:
    base = model(family, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    adapter = trained(tmp_path, base, method="qlora", precision="bf16")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    out = export(adapter, base, tmp_path / "merged", merge=True)
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    ids = torch.randint(0, 256, (4, 30))
    merged = logits_of(load_causal_lm(out, dtype=torch.float32), ids)
    unmerged = logits_of(open_model(adapter, base_path=base, device="cpu").model.float(), ids)
    # What is left is the rounding of the merged weights to the base's 8 bits of mantissa.
    assert divergence(unmerged, merged) < 0.02
    # Against what was trained, the NF4 base with the adapter: no more than quantisation did to the base alone.
    from peft import PeftModel

    nf4 = load_nf4(base, dtype=torch.float32, device=CPU)
    plain = logits_of(load_causal_lm(base, dtype=torch.float32), ids)
    error = divergence(plain, logits_of(nf4, ids))
    assert 0 < divergence(logits_of(PeftModel.from_pretrained(nf4, str(adapter)), ids), merged) < 2 * error + 0.02


def test_trap_28_merging_into_another_base_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    base, other = model("llama", tmp_path / "base"), model("llama", tmp_path / "other", seed=8)
    adapter = trained(tmp_path, base, method="qlora")
    with pytest.raises(RequestError, match="trained on another base"):
        export(adapter, other, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()
    copy = export(adapter, base, tmp_path / "copy", merge=False)
    with pytest.raises(RequestError, match="trained on another base"):
        export(copy, other, tmp_path / "out", merge=True)


def test_trap_28_an_evaluation_between_two_steps_leaves_the_gradients_of_a_4_bit_base_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes

    # Where the CPU has no such products bitsandbytes repacks nothing: then the switch alone tells.
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    language_model = load_nf4(model("llama", tmp_path / "base"), dtype=torch.bfloat16, device=CPU)
    layers = [module for module in language_model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    ids = torch.arange(20)[None]

    def gradient() -> torch.Tensor:
        hidden = language_model.get_input_embeddings()(ids).detach().requires_grad_()
        language_model.train()(inputs_embeds=hidden).logits.float().logsumexp(-1).sum().backward()
        assert hidden.grad is not None
        return hidden.grad

    before = gradient()
    logits_of(language_model, ids)
    assert torch.equal(gradient(), before)


def test_a_4_bit_base_counts_all_its_parameters_and_trains_only_the_adapter(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    counts = []
    for method in ("lora", "qlora"):
        job, folder = make_job(tmp_path / method, rows=examples(8), base=base, method=method, training_duration="1ba")
        run(job, folder)
        counts.append({key: events(folder, "MODEL_INITIALIZED")[0][key] for key in ("parameters", "trainable")})
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("parameters", "lora"), [(1.2e9, 1e-3), (3.2e9, 1e-3), (8e9, 3e-4), (32e9, 3e-4), (70e9, 3e-4)]
)
def test_trap_33_each_method_has_a_default_rate_of_its_own_by_size(parameters: int, lora: float) -> None:
    rates = {method: default_rate(method, parameters, random_weights=False) for method in ("lora", "qlora", "full")}
    assert rates == {"lora": lora, "qlora": lora, "full": pytest.approx(lora / 10)}
    for method, rate in rates.items():
        assert rate_warning(rate, method, rate, random_weights=False) is None
    assert rate_warning(5e-7, "full", rates["full"], random_weights=False) is None
    for method in ("lora", "qlora"):
        assert "hardly learn" in (rate_warning(5e-7, method, lora, random_weights=False) or "")


@pytest.mark.parametrize("registered", [False, True])
def test_a_merge_into_changed_weights_of_the_base_is_refused(tmp_path: Path, registered: bool) -> None:
    base = model("llama", tmp_path / "base")
    if registered:
        seal(base, kind="full")
    adapter = trained(tmp_path, base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 0.1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FMError, match="trained on another base"):
        export(adapter, base, tmp_path / "out", merge=True)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_continued_pretraining_learns_raw_text_by_every_method(tmp_path: Path, method: str) -> None:
    text = [([(start + n) % 256 for n in range(24)], [True] * 24) for start in range(0, 200, 25)]
    job, folder = make_job(
        tmp_path, rows=text, base=model("llama", tmp_path / "base"), method=method, learning_rate=1e-2,
        task_type="CONTINUED_PRETRAIN", training_duration="12ep", batch_size=4,
    )  # fmt: skip
    assert run(job, folder)
    losses = series(folder, "loss/train/total")
    assert losses[-1] < 0.8 * losses[0]
