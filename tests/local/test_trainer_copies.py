"""Copies in bf16 that a step's pieces and a layer's products share: the same results, and fewer copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fm_local.models.load import load_causal_lm
from fm_local.trainer import setup
from fm_local.trainer.batching import collate
from fm_local.trainer.copies import StepCopies, share_inputs
from fm_local.trainer.loss import TokenLoss
from support.families import FAMILIES, save
from support.models import Rows, examples, make_job, model, run, series


class Copies(TorchDispatchMode):
    """Counts copies from fp32 to bf16, by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16 != args[0].dtype:
            self.made[tuple(found.shape)] += 1
        return found


def gradients(language_model: Any, of: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """In bf16, of the loss and of each parameter in `of`."""
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = TokenLoss(language_model)(collate(Rows(examples(5)), list(range(5))))
    found = torch.autograd.grad(loss, of, allow_unused=True)
    names = [name for name, _ in language_model.named_parameters()]
    return {"loss": loss.detach(), **{n: g for n, g in zip(names, found, strict=True) if g is not None}}


@pytest.mark.parametrize("family", FAMILIES)
def test_with_shared_copies_a_family_has_the_loss_and_the_gradients_that_it_has_without(
    tmp_path: Path, family: str
) -> None:
    language_model = load_causal_lm(save(family, tmp_path / "base"), dtype=torch.float32).train()
    parameters = list(language_model.parameters())
    expected = gradients(language_model, parameters)
    share_inputs(language_model)
    with StepCopies(language_model).lent() as copies:
        found = gradients(language_model, [copies.get(parameter, parameter) for parameter in parameters])
    assert found["loss"] == expected["loss"]
    for name, gradient in expected.items():
        # Sums of gradients in bf16, with 8 bits, where they were in fp32.
        assert (found[name] - gradient).norm() <= 0.02 * gradient.norm(), name


def test_layers_that_share_an_input_copy_it_once(tmp_path: Path) -> None:
    language_model = load_causal_lm(model("llama", tmp_path / "base", hidden=64), dtype=torch.float32).train()
    batch = collate(Rows(examples(5)), list(range(5)))
    made = []
    for _ in range(2):
        with Copies() as copies, torch.autocast("cpu", torch.bfloat16):
            TokenLoss(language_model, head_apart=True)(batch)
        made.append(copies.made[*batch.inputs()["input_ids"].shape, 64])
        share_inputs(language_model)
    layers = language_model.config.num_hidden_layers
    assert made == [5 * layers, 2 * layers]  # for queries, keys, values, gate and up; other inputs are bf16 already


def test_an_input_that_was_changed_since_is_copied_again() -> None:
    layer = torch.nn.Linear(3, 3, bias=False)
    share_inputs(layer)
    x = torch.ones(2, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = layer(x)
        x += 1
        assert torch.allclose(layer(x), 2 * first)


def test_weights_are_the_models_own_again_even_after_a_failure(tmp_path: Path) -> None:
    language_model = load_causal_lm(model("llama", tmp_path / "base"), dtype=torch.float32)
    before = dict(language_model.named_parameters())
    with pytest.raises(torch.OutOfMemoryError), StepCopies(language_model).lent() as copies:
        assert copies and all(copy.dtype == torch.bfloat16 for copy in copies.values())
        raise torch.OutOfMemoryError("planted")
    after = dict(language_model.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)


def test_a_training_learns_as_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model("llama", tmp_path / "base", hidden=64)
    common: dict[str, Any] = {"rows": examples(24), "base": base, "batch_size": 8, "training_duration": "3ep",
                              "method": "full", "precision": "bf16", "learning_rate": 1e-3}  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # else there is one lane, which copies nothing
    lent: list[bool] = []

    class Counted(StepCopies):
        def lent(self) -> Any:
            lent.append(bool(self._layers))
            return super().lent()

    try:
        losses = []
        for name, copied in (("with", Counted), ("without", lambda _: Counted(None))):
            monkeypatch.setattr(setup, "StepCopies", copied)
            job, folder = make_job(tmp_path / name, **common)
            assert run(job, folder)
            losses.append(series(folder, "loss/train/total"))
    finally:
        torch.set_num_threads(threads)
    assert lent == [True] * 9 + [False] * 9
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert sum(losses[0][-3:]) < sum(losses[0][:3])
