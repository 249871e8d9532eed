"""What an adapter computes, and what it keeps meanwhile: as PEFT defines it, with less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fm_local.models.load import load_causal_lm
from fm_local.models.nf4 import load_nf4
from fm_local.trainer import loss as loss_module
from fm_local.trainer.adapters import add_adapter
from fm_local.trainer.batching import collate
from fm_local.trainer.fused_lora import _linear_with_lora, _with_lora
from fm_local.trainer.loss import TokenLoss
from support.models import VOCABULARY, Rows, examples, model

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    ("family", "in_4_bits"), [("llama", False), ("gpt2", False), ("qwen2", True), ("gpt2", True)]
)
@pytest.mark.parametrize(("use_rslora", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.5)])
@pytest.mark.parametrize("targets", ["all-linear", ("lm_head",)])
def test_a_fused_adapter_computes_what_pefts_own_does(
    tmp_path: Path, family: str, in_4_bits: bool, use_rslora: bool, dropout: float, targets: Any
) -> None:
    from fm.request import LoraConfig

    load = partial(load_nf4, device=CPU) if in_4_bits else load_causal_lm
    language_model = load(model(family, tmp_path / "base"), dtype=torch.float32)
    lora = LoraConfig(rank=4, use_rslora=use_rslora, dropout=dropout, target_modules=targets)
    peft_model = add_adapter(language_model, lora, token_ids=[], seed=1)
    trainable = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        torch.nn.init.normal_(parameter, std=0.1)
    apart = dropout > 0 or (family == "gpt2" and not in_4_bits and targets == "all-linear")
    functions = {module.forward.func for module in peft_model.modules() if vars(module).get("forward") is not None}
    assert functions == {_with_lora if apart else _linear_with_lora}
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
