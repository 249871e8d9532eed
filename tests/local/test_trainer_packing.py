"""Packing: examples share a row and nothing else. Each trap's test is named after it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fm.errors import Unsupported
from fm_local.trainer import attention, packing
from fm_local.trainer.batching import collate, collate_packed, lay_in_row, micro_batches
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.packing import pack, why_not_isolated
from fm_local.trainer.short_attention import SHORT
from support.families import ATTENTION, FAMILIES, save
from support.models import Example, Rows, events, examples, lines, make_job, model, run

CPU = torch.device("cpu")
OURS = (SHORT, attention.BY_DOCUMENT)
IMPLEMENTATIONS = sorted(
    set(product(ATTENTION, ("eager", "sdpa", "flex_attention", *OURS)))
    # transformers has no implementation of these two.
    - {("gemma2", "sdpa"), ("gpt2", "flex_attention")}
    # Scores are capped there, which these refuse.
    - set(product(["gemma2"], OURS))
)


def opened(family: str, folder: Path, attend: str = "eager") -> Any:
    language_model = AutoModelForCausalLM.from_pretrained(save(family, folder), dtype=torch.float32)
    language_model.set_attn_implementation(attend)
    return language_model


def summed(loss: TokenLoss, rows: list[Example], *, packed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all rows, in three or four micro-batches."""
    data = Rows(rows)
    cut, load = (pack, collate_packed) if packed else (micro_batches, collate)
    total = 0.0
    loss.zero_grad()
    for piece in cut(np.arange(len(data)), data.lengths, 90):
        value, _ = loss(load(data, piece))
        value.backward()
        total += value.item()
    return total, {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


def logits_of_last(loss: TokenLoss, rows: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        logits = loss.logits(lay_in_row([np.array(ids[:-1]) for ids, _ in rows]))
    return logits[0, -(len(rows[-1][0]) - 1) :]


@pytest.mark.parametrize(("family", "attend"), IMPLEMENTATIONS)
def test_trap_18_documents_of_a_row_do_not_see_each_other(tmp_path: Path, family: str, attend: str) -> None:
    language_model = opened(family, tmp_path, attend)
    # Compiling is what a GPU does with it; the same written out is exact, and quick for a handful of tokens.
    torch.compiler.set_stance("force_eager")
    try:
        loss = TokenLoss(language_model.eval())
        first, other, last = examples(1, seed=1), examples(1, seed=2), examples(1, seed=3)
        with_first, with_other = logits_of_last(loss, first + last), logits_of_last(loss, other + last)
        alone = logits_of_last(loss, last)
        torch.testing.assert_close(with_first, with_other, rtol=0, atol=1e-5)
        torch.testing.assert_close(with_first, alone, rtol=1e-4, atol=1e-5)
        # As one document they do influence each other, so the comparison can fail.
        joined = [([*first[0][0], *last[0][0]], [*first[0][1], *last[0][1]])]
        seen = logits_of_last(loss, joined)[-len(alone) :]
        assert (seen - alone).abs().max() > 0.1
    finally:
        torch.compiler.set_stance("default")


def test_trap_18_a_mask_of_ones_or_a_cache_would_have_let_them_see_each_other(tmp_path: Path) -> None:
    """What transformers does, and why `MicroBatch.inputs` holds neither."""
    language_model = opened("llama", tmp_path, "sdpa").eval()
    rows = examples(2, seed=1)
    inputs = collate_packed(Rows(rows), range(2)).inputs()
    assert "attention_mask" not in inputs
    with torch.no_grad():
        apart = language_model(**inputs, use_cache=False).logits
        masked = language_model(**inputs, use_cache=False, attention_mask=torch.ones_like(inputs["input_ids"])).logits
    assert (apart - masked).abs().max() > 0.1


def test_trap_19_the_first_token_of_a_document_is_nowhere_a_label() -> None:
    rows: list[Example] = [([1, 2, 3], [True, True, True]), ([4, 5, 6], [True, False, True])]
    batch = collate_packed(Rows(rows), range(2))
    filler = 32 - 4
    assert batch.ids.tolist() == [[1, 2, 4, 5, *[0] * filler]]
    assert batch.labels.tolist() == [2, 3, 6] and batch.positions.tolist() == [0, 1, 3]
    assert batch.documents and batch.documents.position_ids.tolist() == [[0, 1, 0, 1, *range(filler)]]
    assert batch.documents.boundaries.tolist() == [0, 2, 4, 32] and batch.documents.longest == filler


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("family", "attend"), [*product(ATTENTION, ["eager"]), *product(["llama", "qwen2", "mistral", "gemma"], OURS)]
)
def test_trap_19_packed_loss_and_gradients_are_those_of_each_document_alone(
    tmp_path: Path, family: str, attend: str, method: str
) -> None:
    language_model = opened(family, tmp_path, attend)
    if method == "lora":
        get_peft_model(language_model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    loss, rows = TokenLoss(language_model), examples(8)
    value, gradients = summed(loss, rows, packed=True)
    wanted, plain = 0.0, None
    for row in rows:
        one, its = summed(loss, [row], packed=False)
        wanted, plain = wanted + one, its if plain is None else {name: plain[name] + its[name] for name in its}
    assert plain and gradients.keys() == plain.keys()
    assert value == pytest.approx(wanted, rel=1e-5)
    for name, gradient in plain.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_trap_20_what_flows_from_document_to_document_is_found_by_trying(
    tmp_path: Path, family: str, bf16: bool
) -> None:
    language_model = opened(family, tmp_path)
    if bf16:  # and weights as small as new ones are, so that hardly anything flows
        with torch.no_grad():
            for name, parameter in language_model.named_parameters():
                if parameter.dim() > 1 and "A_log" not in name:
                    parameter.mul_(0.2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = TokenLoss(language_model)
        reason = why_not_isolated(loss, CPU)
    assert (reason is None) == (family in ATTENTION), reason
    assert loss.training and all(p.grad is None for p in loss.parameters())


def test_trap_20_a_model_that_ignores_positions_is_found_by_trying(tmp_path: Path) -> None:
    language_model = opened("gpt2", tmp_path)
    inner = language_model.forward

    def absolute(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        length = kwargs["input_ids"].shape[1]
        # Documents are kept apart, but counted from the row's beginning.
        shifted = None if position_ids is None else position_ids + (torch.arange(length) - position_ids).clamp_min(0)
        keep = None if position_ids is None else torch.cumsum(position_ids == 0, -1)
        if keep is not None:
            same = (keep[0][:, None] == keep[0][None]) & torch.ones(length, length, dtype=torch.bool).tril()
            kwargs["attention_mask"] = torch.zeros(length, length).masked_fill(~same, -1e9)[None, None]
        return inner(*args, position_ids=shifted, **kwargs)

    language_model.forward = absolute
    loss = TokenLoss(language_model)
    loss._split = False
    assert "in a row of its own" in (why_not_isolated(loss, CPU) or "")


def test_trap_20_packing_is_refused_with_a_remedy_before_training(tmp_path: Path) -> None:
    job, folder = make_job(tmp_path, rows=examples(4), base=save("mamba", tmp_path / "base"), packing=True)
    with pytest.raises(Unsupported, match=r"see each other(?s:.)*packing=\"auto\"") as caught:
        run(job, folder)
    assert caught.value.field == "packing"
    assert not lines(folder.metrics)


class Recorder:
    """Stands in for a report."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def event(self, _: Any, message: str, **__: Any) -> None:
        self.warnings.append(message)


def test_trap_20_auto_goes_back_to_padded_rows_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with what this machine has."""
    monkeypatch.setattr(packing, "why_not_isolated", lambda loss, _: why_not_isolated(loss, CPU))
    monkeypatch.setattr(packing, "candidates", lambda *_: ["eager", "flex_attention"])
    loss, report = TokenLoss(opened("mamba", tmp_path)), Recorder()
    before = loss.language_model.config._attn_implementation
    assert packing.choose_packing(loss, "auto", torch.device("cuda"), report) is False  # type: ignore[arg-type]
    assert len(report.warnings) == 1 and "mamba" in report.warnings[0]
    assert loss.language_model.config._attn_implementation == before


def test_examples_are_packed_on_a_cpu_as_well_and_never_where_the_model_mixes_them(tmp_path: Path) -> None:
    for family, attend in (("llama", attention.BY_DOCUMENT), ("mamba", None)):
        job, folder = make_job(
            tmp_path / family, rows=examples(8), base=save(family, tmp_path / "base" / family), method="full",
            precision="fp32",
        )  # fmt: skip
        run(job, folder)
        said = events(folder, "MODEL_INITIALIZED")[0]
        assert said["packed"] is bool(attend)
        assert attend is None or said["attention"] == attend


@pytest.mark.parametrize("method", ["full", "lora"])
def test_trap_22_steps_rates_tokens_and_losses_are_those_of_a_training_without_packing(
    tmp_path: Path, method: str
) -> None:
    base = model("llama", tmp_path / "base")
    seen = []
    for wish in (False, True):
        job, folder = make_job(
            tmp_path / str(wish), rows=examples(22), base=base, method=method, batch_size=4, packing=wish
        )
        run(job, folder, max_tokens=70)
        assert events(folder, "MODEL_INITIALIZED")[0]["packed"] is wish
        seen.append([line["values"] for line in lines(folder.metrics)])
    plain, packed = seen
    # 22 examples in steps of 4, twice over.
    assert len(packed) == len(plain) == 12
    for name, within in (("lr", 1e-9), ("loss/train/total", 1e-4), ("grad_norm", 1e-3)):
        assert [v[name] for v in packed] == pytest.approx([v[name] for v in plain], rel=within), name
    assert events(folder, "TRAIN_FINISHED")[0]["tokens"] == 2 * sum(len(ids) for ids, _ in examples(22))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_kernel_for_a_gpu_is_called_as_the_padded_and_the_packed_row_mean(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs a GPU; written out by its documentation it has to give what "eager" gives."""

    def by_the_book(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, begins: torch.Tensor, _: Any, longest: int, __: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    ) -> torch.Tensor:  # fmt: skip
        assert begins.dtype == torch.int32 and longest == begins.diff().max() and window_size[1] == 0
        out = []
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            parts = (x[begin:end].transpose(0, 1) for x in (q, k, v))
            back = torch.arange(end - begin)[:, None] - torch.arange(end - begin)[None]
            mask = (back >= 0) & (back <= (window_size[0] if window_size[0] >= 0 else end))
            attended = torch.nn.functional.scaled_dot_product_attention(
                *parts, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
            )
            out.append(attended.transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(attention.varlen, "varlen_attn", by_the_book)
    language_model, rows = opened(family, tmp_path), examples(6)
    loss = TokenLoss(language_model)
    for packed in (False, True):
        language_model.set_attn_implementation("eager")
        value, wanted = summed(loss, rows, packed=packed)
        language_model.set_attn_implementation(attention.VARLEN)
        ours, gradients = summed(loss, rows, packed=packed)
        assert ours == pytest.approx(value, rel=1e-5)
        for name, gradient in wanted.items():
            assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
    assert why_not_isolated(loss, CPU) is None
    eager = language_model.eval().generate(torch.tensor([[1, 2, 3]]), max_new_tokens=12, do_sample=False)
    language_model.set_attn_implementation("eager")
    again = language_model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=12, do_sample=False)
    assert torch.equal(eager, again)
    language_model.set_attn_implementation(attention.VARLEN)
    language_model.save_pretrained(tmp_path / "saved")
    assert attention.VARLEN not in (tmp_path / "saved" / "config.json").read_text()
