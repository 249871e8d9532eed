"""Norms, attention and loss that are written by hand compute what transformers' and torch's own do, for each family
that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from fm_local.models.load import load_causal_lm
from fm_local.trainer.attention import BY_DOCUMENT
from fm_local.trainer.batching import MicroBatch, collate
from fm_local.trainer.fused_norm import fuse_norms
from fm_local.trainer.loss import TokenLoss, cross_entropy
from fm_local.trainer.short_attention import SHORT, attend_by_products, lay_out
from support.families import ATTENTION, FAMILIES, save
from support.models import Rows, examples, model

CPU = torch.device("cpu")
OWN_NORMS = ("gemma", "gemma2", "gemma3")
"""Those that add 1 to what they scale by."""
NO_NORMS = ("gpt2", "phi")
"""Those that subtract the mean, which torch does in one operation anyway."""


def batch(longest: int = 24) -> MicroBatch:
    return collate(Rows(examples(5, longest=longest)), list(range(5)))


def gradients(language_model: Any, of: MicroBatch) -> dict[str, torch.Tensor]:
    loss, _ = TokenLoss(language_model)(of)
    names, parameters = zip(*language_model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {"loss": loss.detach(), **{n: g for n, g in zip(names, found, strict=True) if g is not None}}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def fused_in(language_model: Any) -> list[Any]:
    return [module for module in language_model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_norms_give_the_losses_and_gradients_of_the_familys_own(tmp_path: Path, family: str) -> None:
    language_model = load_causal_lm(save(family, tmp_path / "base"), dtype=torch.float32).train()
    for name, parameter in language_model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    expected = gradients(language_model, batch())
    fuse_norms(language_model)
    assert bool(fused_in(language_model)) is (family not in OWN_NORMS + NO_NORMS)
    assert_same(gradients(language_model, batch()), expected)


def test_fused_norms_keep_half_of_what_the_written_out_ones_keep(tmp_path: Path) -> None:
    language_model = load_causal_lm(model("llama", tmp_path / "base"), dtype=torch.bfloat16)
    norm = language_model.model.norm
    x = torch.randn(2, 16, norm.weight.shape[0], dtype=torch.bfloat16, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    sizes, found = [], []
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = norm(x)
        sizes.append(sum(kept))
        kept.clear()
        found.append(torch.autograd.grad(out.float().square().sum(), x)[0])
        fuse_norms(language_model)
    assert sizes[1] < 0.5 * sizes[0]
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", ATTENTION)
def test_attention_by_products_gives_the_losses_and_gradients_of_the_familys_own(tmp_path: Path, family: str) -> None:
    language_model = load_causal_lm(save(family, tmp_path / "base"), dtype=torch.float32).train()
    language_model.set_attn_implementation("eager")
    expected = gradients(language_model, batch())
    attend_by_products(TokenLoss(language_model), CPU)
    assert language_model.training
    # Gemma 2 caps its scores.
    assert language_model.config._attn_implementation == ("eager" if family == "gemma2" else SHORT)
    assert_same(gradients(language_model, batch()), expected)


def test_attention_by_products_in_bf16_is_as_near_to_fp32_as_the_familys_own(tmp_path: Path) -> None:
    language_model = load_causal_lm(save("qwen3", tmp_path / "base"), dtype=torch.float32).train()
    language_model.set_attn_implementation("eager")
    exact = gradients(language_model, batch())
    far = []
    for name in ("eager", SHORT):
        language_model.set_attn_implementation(name)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = gradients(language_model, batch())
        far.append(sum(float((rounded[key] - exact[key]).norm() / exact[key].norm()) for key in exact))
    assert far[1] < 1.2 * far[0]


def test_a_model_that_drops_attention_at_random_keeps_its_own(tmp_path: Path) -> None:
    language_model = load_causal_lm(model("llama", tmp_path / "base", dropout=0.1), dtype=torch.float32).train()
    attend_by_products(TokenLoss(language_model), CPU)
    assert language_model.config._attn_implementation == "eager"


def test_answers_are_those_of_the_familys_own_attention(tmp_path: Path) -> None:
    language_model = load_causal_lm(save("mistral", tmp_path / "base"), dtype=torch.float32).eval()
    prompt, answers = torch.tensor([[5, 6, 7, 8, 9]]), []
    for name in ("eager", SHORT):
        language_model.set_attn_implementation(name)
        answers.append(language_model.generate(prompt, max_new_tokens=12, do_sample=False).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("window", [None, 20, 50, 200])
@pytest.mark.parametrize("lengths", [[500, 130, 130, 20, 1], [70, 66, 64, 64, 38, 31, 5, 1, 12], [333, 333]])
def test_documents_are_attended_to_as_by_one_product_with_a_mask(lengths: list[int], window: int | None) -> None:
    packed = len(set(lengths)) > 1
    heads, shared, size, tokens = 6, 2, 8, sum(lengths)
    torch.manual_seed(1)
    counts = (heads, shared, shared)
    leaves = [torch.randn(tokens, count, size, dtype=torch.float64, requires_grad=True) for count in counts]
    rows = 1 if packed else len(lengths)
    inputs = [x.view(rows, tokens // rows, -1, size).transpose(1, 2) for x in leaves]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32) if packed else None
    found = [
        AttentionInterface()[name](torch.nn.Module(), *inputs, None, sliding_window=window, cu_seq_lens_q=ends)[0]
        for name in (SHORT, BY_DOCUMENT)
    ]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    back = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
    seen = (document[:, None] == document[None]) & (back >= 0) & (back < (window or tokens))
    q, k, v = (x.transpose(0, 1) for x in leaves)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(0, 1)
    upstream = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, leaves, upstream)
    for out in (attended.flatten(0, 1) for attended in found):
        torch.testing.assert_close(out, plain)
        # What stretches give to the keys is summed in fp32.
        for one, other in zip(torch.autograd.grad(out, leaves, upstream), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_each_query_and_key_lies_in_one_place_and_documents_in_few_sizes(lengths: list[int]) -> None:
    lay = lay_out(tuple(lengths), 6, 2)
    for taken, places, heads in ((lay.queries, lay.places_of_queries, 6), (lay.keys, lay.places_of_keys, 2)):
        assert taken[places].tolist() == list(range(sum(lengths) * heads))
    own = np.zeros(len(lay.queries), dtype=bool)
    own[lay.places_of_queries] = True
    assert lay.filling.tolist() == np.flatnonzero(~own).tolist()
    # Lengths that recur: each size of a product is compiled by itself.
    assert all(group.length % 32 == 0 for group in lay.groups)
    assert sum(group.products // 2 for group in lay.groups) == len(lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [0, 7])
def test_the_loss_and_its_gradient_are_torchs_own(dtype: torch.dtype, more: int) -> None:
    torch.manual_seed(1)
    logits = (3 * torch.randn(20 + more, 50)).to(dtype).requires_grad_()
    labels = torch.randint(50, (20,))
    labels[5:10] = logits[5:10].argmax(-1)
    with torch.no_grad():
        logits[0, labels[0]] = -300.0  # whose probability is 0 in fp32
    counted = logits[:20].float()
    loss, right = cross_entropy(logits, labels)
    expected = torch.nn.functional.cross_entropy(counted, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert right == (counted.argmax(-1) == labels).sum() > 0
    (ours,), (theirs,) = (torch.autograd.grad(2 * value, logits) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)
