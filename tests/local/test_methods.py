"""LoRA in all its forms, QLoRA and full training: the same promises for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fm.errors import FMError, RequestError
from fm.files import read_manifest, seal
from fm.types import ModelRef
from fm_local.models.export import export
from fm_local.models.load import load_causal_lm, open_model
from fm_local.models.nf4 import load_nf4
from fm_local.trainer import loss as loss_module
from fm_local.trainer.adapters import add_adapter
from fm_local.trainer.batching import collate
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.rates import default_rate, rate_warning
from support.fresh import in_fresh_processes
from support.models import VOCABULARY, Rows, events, examples, lines, make_job, model, run

CPU = torch.device("cpu")
FORMS: dict[str, dict[str, Any]] = {
    "qlora": {"method": "qlora"},
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "qdora": {"method": "qlora", "lora": {"use_dora": True, "use_rslora": True}},
    "new-tokens": {"new_tokens": ["<a>", "<b>"]},
    "qlora-new-tokens": {"method": "qlora", "new_tokens": ["<a>"]},
}


def trained(root: Path, base: Path | ModelRef, **request: Any) -> Path:
    """The final folder of a short training."""
    common = {"rows": examples(8), "training_duration": "4ba", "method": "lora", "learning_rate": 1e-2}
    job, folder = make_job(root, base=base, **{**common, **request})
    assert run(job, folder)
    return folder.final


def logits_of(language_model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = language_model.eval()(ids).logits.float()
    return found


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


@contextmanager
def saved_tensors() -> Iterator[dict[int, torch.Tensor]]:
    """The tensors that are kept for the backward pass, each storage once."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_trap_24_no_adapter_keeps_a_copy_of_its_own_of_its_input_under_autocast(tmp_path: Path, method: str) -> None:
    from fm.request import LoraConfig

    base = model("llama", tmp_path / "base")
    sizes, gradients = [], []
    for as_peft_has_it in (False, True):
        if method == "qlora":
            language_model = load_nf4(base, dtype=torch.bfloat16, device=CPU)
        else:
            language_model = load_causal_lm(base, dtype=torch.bfloat16)
        peft_model = add_adapter(language_model, LoraConfig(), token_ids=[], seed=1)
        if as_peft_has_it:
            for module in peft_model.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = True
                    vars(module).pop("forward", None)
        with torch.autocast("cpu", torch.bfloat16), saved_tensors() as kept:
            loss, _ = TokenLoss(language_model)(collate(Rows(examples(8)), list(range(8))))
            sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
        loss.backward()
        gradients.append([p.grad for p in language_model.parameters() if p.grad is not None])
    assert sizes[0] < 0.9 * sizes[1]
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("use_rslora", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.5)])
@pytest.mark.parametrize("targets", ["all-linear", ("lm_head",)])
def test_a_fused_adapter_computes_what_pefts_own_does(
    tmp_path: Path, family: str, use_rslora: bool, dropout: float, targets: Any
) -> None:
    from fm.request import LoraConfig

    language_model = load_causal_lm(model(family, tmp_path / "base"), dtype=torch.float32)
    lora = LoraConfig(rank=4, use_rslora=use_rslora, dropout=dropout, target_modules=targets)
    peft_model = add_adapter(language_model, lora, token_ids=[], seed=1)
    trainable = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        torch.nn.init.normal_(parameter, std=0.1)
    batch = collate(Rows(examples(6)), list(range(6)))
    found = []
    for fused in (True, False):
        layers = [module for module in peft_model.modules() if vars(module).get("forward") is not None]
        assert bool(layers) is fused
        torch.manual_seed(1)
        loss, _ = TokenLoss(language_model)(batch)
        found.append((loss, torch.autograd.grad(loss, trainable)))
        for layer in layers:
            del layer.forward
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        largest = float(other.abs().max())
        assert largest > 0
        # A small element is a sum of large ones, rounded in another order on each kind of CPU.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows_at_once", [32, 10_000])
def test_trap_30_the_gradient_of_an_adapter_on_the_head_is_the_plain_losss(
    tmp_path: Path, tied: bool, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fm.request import LoraConfig

    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", VOCABULARY * rows_at_once)
    language_model = load_causal_lm(model("llama", tmp_path / "base", tied=tied), dtype=torch.float32)
    add_adapter(language_model, LoraConfig(target_modules=("lm_head", "q_proj")), token_ids=[], seed=1)
    trainable = {name: p for name, p in language_model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = collate(Rows(examples(5)), list(range(5)))
    assert 32 < len(batch.labels) < 64
    loss, _ = TokenLoss(language_model)(batch)
    ours = torch.autograd.grad(loss, list(trainable.values()))
    logits = language_model(input_ids=batch.ids).logits.flatten(0, 1)[batch.positions]
    plain = F.cross_entropy(logits, batch.labels, reduction="sum")
    torch.testing.assert_close(loss, plain)
    for name, one, other in zip(trainable, ours, torch.autograd.grad(plain, list(trainable.values())), strict=True):
        assert one.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


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


def test_rslora_scales_by_the_square_root_of_the_rank_and_dora_trains_lengths(tmp_path: Path) -> None:
    from fm.request import LoraConfig

    language_model = load_causal_lm(model("llama", tmp_path / "base"))
    config = LoraConfig(rank=16, alpha=8, use_rslora=True, use_dora=True)
    peft_model = add_adapter(language_model, config, token_ids=[], seed=1)
    layers = [m for m in peft_model.modules() if hasattr(m, "lora_magnitude_vector")]
    assert {m.scaling["default"] for m in layers} == {2.0}
    lengths = [p for name, p in peft_model.named_parameters() if "magnitude" in name]
    assert len(lengths) == len(layers) == 14
    assert all(p.requires_grad and p.dtype == torch.float32 for p in lengths)


def registered(adapter: Path, base: Path) -> ModelRef:
    return ModelRef(
        kind="registered", name="a.b.c/1", path=str(adapter), adapter_of=ModelRef(kind="path", name="b", path=str(base))
    )


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
    losses = [line["values"]["loss/train/total"] for line in lines(folder.metrics) if "lr" in line["values"]]
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
    losses = [line["values"]["loss/train/total"] for line in lines(folder.metrics) if "lr" in line["values"]]
    assert losses[-1] < 0.8 * losses[0]
