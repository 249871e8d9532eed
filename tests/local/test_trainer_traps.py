"""How fine-tuning goes quietly wrong elsewhere, and that it does not here. Each test is named after its trap."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fm.errors import RequestError
from fm.layout import StageFolder
from fm_local.trainer import loss as loss_module
from fm_local.trainer.batching import MicroBatch, collate, micro_batches
from fm_local.trainer.loss import TokenLoss
from support.gradients import plain_mean_gradient
from support.models import EOS, Example, Rows, events, examples, make_job, model, run, series
from support.ranks import run_ranks


def gradient(path: Path, rows: list[Example], max_tokens: int) -> tuple[float, dict[str, torch.Tensor]]:
    data = Rows(rows)
    language_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    module = TokenLoss(language_model)
    total = 0.0
    for group in micro_batches(np.arange(len(data)), data.lengths, max_tokens):
        value, _ = module(collate(data, group))
        (value / int(data.trained.sum())).backward()
        total += value.item()
    return total / int(data.trained.sum()), {name: p.grad for name, p in language_model.named_parameters()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("max_tokens", [1, 45, 90, 10_000])
def test_trap_1_and_7_gradients_do_not_depend_on_how_a_step_is_cut_and_equal_the_plain_loss(
    tmp_path: Path, family: str, max_tokens: int
) -> None:
    path, rows = model(family, tmp_path / "base"), examples(8)
    value, plain = plain_mean_gradient(path, rows)
    ours, cut = gradient(path, rows, max_tokens)
    assert ours == pytest.approx(value, rel=1e-5)
    assert_close(cut, plain)


def test_trap_7_the_loss_in_blocks_has_value_and_gradient_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = model("llama", tmp_path / "base"), examples(8)[:7]
    assert (labels := sum(sum(trained[1:]) for _, trained in rows)) > 64 and labels % 32
    value, plain = plain_mean_gradient(path, rows)
    monkeypatch.setattr(loss_module, "_LOGITS_AT_ONCE", 259 * 32)
    ours, blocks = gradient(path, rows, 10_000)
    assert ours == pytest.approx(value, rel=1e-5)
    assert_close(blocks, plain)


def test_trap_7_a_model_that_does_more_to_its_logits_than_its_head_is_asked_for_them(tmp_path: Path) -> None:
    language_model = AutoModelForCausalLM.from_pretrained(model("llama", tmp_path / "base"), dtype=torch.float32)
    assert TokenLoss(language_model)._split
    inner = language_model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        output.logits = torch.tanh(output.logits / 2) * 2
        return output

    language_model.forward = capped
    module = TokenLoss(language_model)
    assert not module._split
    ids = torch.randint(0, 259, (2, 9))
    batch = MicroBatch(ids, torch.tensor([3, 10]), torch.tensor([5, 6]))
    expected = F.cross_entropy(capped(input_ids=ids).logits.flatten(0, 1)[[3, 10]], batch.labels, reduction="sum")
    torch.testing.assert_close(module(batch)[0], expected)


def trained_weights(folder: StageFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.final / "model.safetensors")


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_trap_1_a_step_in_pieces_has_the_loss_and_the_gradient_of_the_plain_mean(
    tmp_path: Path, max_tokens: int
) -> None:
    base, rows = model("llama", tmp_path / "base"), examples(8)
    job, folder = make_job(tmp_path, rows=rows, base=base, batch_size=8, training_duration="1ba")
    run(job, folder, max_tokens=max_tokens)
    value, plain = plain_mean_gradient(base, rows)
    assert series(folder, "loss/train/total") == [pytest.approx(value, rel=1e-4)]
    norm = torch.stack([gradient.norm() for gradient in plain.values()]).norm().item()
    assert series(folder, "grad_norm") == [pytest.approx(norm, rel=1e-4)]


def test_trap_2_the_last_partial_step_is_divided_by_its_own_labels(tmp_path: Path) -> None:
    base, rows = model("llama", tmp_path / "base"), examples(2)
    folders = []
    for name, size in (("of-4", 4), ("of-2", 2)):
        job, folder = make_job(tmp_path / name, rows=rows, base=base, batch_size=size, training_duration="1ba")
        run(job, folder)
        folders.append(folder)
    value, _ = plain_mean_gradient(base, rows)
    for folder in folders:
        assert series(folder, "loss/train/total") == [pytest.approx(value, rel=1e-5)]
    one, two = (trained_weights(folder) for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_trap_3_the_gradient_norm_does_not_depend_on_the_number_of_micro_batches(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    norms = []
    for max_tokens in (1, 60, 10_000):
        job, folder = make_job(
            tmp_path / str(max_tokens), rows=examples(8), base=base, batch_size=8, training_duration="3ba"
        )
        run(job, folder, max_tokens=max_tokens)
        norms.append(series(folder, "grad_norm"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[2], rel=1e-4)


@pytest.mark.parametrize("packing", ["auto", False])
def test_trap_4_and_5_two_processes_train_and_evaluate_as_one_does(tmp_path: Path, packing: str | bool) -> None:
    base = model("llama", tmp_path / "base")
    # Seven rows in steps of three: a step of one row leaves the second process without any.
    common = {
        "rows": examples(7),
        "held_out": examples(5, seed=2),
        "base": base,
        "batch_size": 3,
        "training_duration": "2ep",
        "packing": packing,
    }
    job, one = make_job(tmp_path / "one", **common)
    run(job, one)
    _, two = make_job(tmp_path / "two", **common, num_processes=2)
    run_ranks(two)
    assert events(two, "MODEL_INITIALIZED")[0]["packed"] is bool(packing)
    for name in ("loss/train/total", "grad_norm", "metrics/eval/LanguageCrossEntropy", "metrics/eval/TokenAccuracy"):
        assert series(one, name) == pytest.approx(series(two, name), rel=1e-4), name
    first, second = trained_weights(one), trained_weights(two)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 3 * 41, 8 * 41])
def test_trap_5_evaluation_is_weighted_by_tokens_at_every_batch_size(tmp_path: Path, max_tokens: int) -> None:
    base, held_out = model("qwen2", tmp_path / "base"), examples(13, seed=4)
    job, folder = make_job(
        tmp_path, rows=examples(4), held_out=held_out, base=base, training_duration="1ba", learning_rate=1e-9
    )
    run(job, folder, max_tokens=max_tokens)
    value, _ = plain_mean_gradient(base, held_out)
    assert series(folder, "metrics/eval/LanguageCrossEntropy")[0] == pytest.approx(value, rel=1e-5)
    assert series(folder, "metrics/eval/LanguagePerplexity")[0] == pytest.approx(math.exp(value), rel=1e-4)


def test_trap_6_a_loss_that_is_not_finite_stops_the_run_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    job, folder = make_job(tmp_path, rows=examples(8), base=base)
    with pytest.raises(RequestError, match="step 1: the loss is nan"):
        run(job, folder)
    assert not folder.final.exists()
    assert not folder.checkpoints.exists()


def test_trap_8_the_last_token_keeps_its_label_where_padding_has_the_same_id() -> None:
    rows: list[Example] = [([1, 2, 3, EOS], [False, True, True, True]), ([4, EOS], [True, True])]
    batch = collate(Rows(rows), [0, 1])
    # The short row is padded with id 0 or any other: only positions decide.
    assert batch.labels.tolist() == [2, 3, EOS, EOS]
    assert batch.positions.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("method", "precision"), [("lora", "bf16"), ("lora", "fp32"), ("full", "bf16")])
def test_trap_23_every_trainable_tensor_moves_at_a_low_rate_because_masters_are_fp32(
    tmp_path: Path, method: str, precision: str
) -> None:
    job, folder = make_job(
        tmp_path,
        rows=examples(16),
        base=model("llama", tmp_path / "base"),
        method=method,
        precision=precision,
        learning_rate=2e-6,
        training_duration="4ba",
        save_interval="1ba",
        keep_checkpoints=10,
        warmup=0,
    )
    run(job, folder)
    first, *_, last = sorted(folder.checkpoints.iterdir())
    before, after = (load_file(path / "trainable.safetensors") for path in (first, last))
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    # With LoRA the first factor has no gradient until the second has left zero, which takes one step.
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_trap_32_one_single_step_changes_the_parameters(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    job, folder = make_job(tmp_path, rows=examples(4), base=base, training_duration="1ba", warmup=0.9)
    run(job, folder)
    before, after = load_file(base / "model.safetensors"), trained_weights(folder)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert events(folder, "TRAIN_FINISHED")[0]["metrics"]["lr"] > 0
