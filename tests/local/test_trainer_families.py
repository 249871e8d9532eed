"""Model families: each is trained as any other, and what differs between them does not show in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fm.errors import RequestError
from fm_local.models.load import load_adapted, load_causal_lm
from fm_local.trainer.batching import collate, micro_batches
from fm_local.trainer.loss import TokenLoss
from support.families import FAMILIES, save
from support.models import Example, Rows, examples, lines, make_job, run


def plain_loss(language_model: Any, rows: list[Example]) -> torch.Tensor:
    """transformers' own loss, a row at a time, weighted by labels."""
    total, labels = torch.zeros(()), 0
    for ids, mask in rows:
        wanted = torch.tensor([[token if trained else -100 for token, trained in zip(ids, mask, strict=True)]])
        count = sum(mask[1:])
        total = total + language_model(input_ids=torch.tensor([ids]), labels=wanted, use_cache=False).loss * count
        labels += count
    return total / labels


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_padded_without_a_mask_have_transformers_own_loss_and_gradients(tmp_path: Path, family: str) -> None:
    path, rows = save(family, tmp_path), examples(8)
    found = []
    for padded in (False, True):
        language_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if padded:
            data, loss = Rows(rows), TokenLoss(language_model)
            pieces = micro_batches(np.arange(len(data)), data.lengths, 4 * 41)
            # Unequal lengths share a batch, else nothing is shown.
            assert any(len(piece) > 1 and len(set(data.lengths[piece])) > 1 for piece in pieces)
            value: Any = sum(loss(collate(data, piece))[0] for piece in pieces) / int(data.trained.sum())
        else:
            value = plain_loss(language_model, rows)
        value.backward()
        found.append((value.item(), {n: p.grad for n, p in language_model.named_parameters() if p.grad is not None}))
    (wanted, plain), (ours, gradients) = found
    assert ours == pytest.approx(wanted, rel=1e-5)
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        assert (gradients[name] - gradient).norm() <= 2e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_what_was_saved_opens_as_it_was(tmp_path: Path, family: str, method: str) -> None:
    base, held_out = save(family, tmp_path / "base"), examples(6, seed=5)
    job, folder = make_job(
        tmp_path,
        rows=examples(24),
        held_out=held_out,
        base=base,
        method=method,
        training_duration="6ba",
        learning_rate=3e-3 if method == "full" else 3e-2,
        lora={"target_modules": ["in_proj", "x_proj"] if family == "mamba" else "all-linear"},
    )
    run(job, folder, max_tokens=100)
    values = [line["values"] for line in lines(folder.metrics)]
    losses = [value["metrics/eval/LanguageCrossEntropy"] for value in values if "metrics/eval/TokenAccuracy" in value]
    assert losses[-1] < losses[0]
    saved = load_causal_lm(folder.final) if method == "full" else load_adapted(folder.final, base)
    with torch.no_grad():
        assert plain_loss(saved.eval(), held_out).item() == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_its_steps_in_bf16_too(tmp_path: Path, family: str) -> None:
    job, folder = make_job(
        tmp_path, rows=examples(8), base=save(family, tmp_path / "base"), precision="bf16", training_duration="2ba"
    )
    run(job, folder)
    losses = [line["values"]["loss/train/total"] for line in lines(folder.metrics)]
    assert len(losses) == 2 and losses[1] != losses[0]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("all-linear", "'out_proj' is incompatible"),
        (["in_proj", "dt_proj"], r"dt_proj would never learn(?s:.)*in_proj"),
    ],
)
def test_adapters_on_layers_that_a_state_space_model_does_not_call_are_refused(
    tmp_path: Path, layers: Any, message: str
) -> None:
    base = save("mamba", tmp_path / "base")
    job, folder = make_job(tmp_path, rows=examples(4), base=base, method="lora", lora={"target_modules": layers})
    with pytest.raises(RequestError, match=message) as caught:
        run(job, folder)
    assert caught.value.field == "lora"
    assert not lines(folder.metrics)
