"""Spikes and broken steps, going back past them, the best checkpoint, and memory that runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fm.errors import RequestError
from fm_local.trainer.failures import failure_event
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.step import Gradients, Stepper
from fm_local.trainer.watch import HISTORY, RUN, has_spiked
from support.disturb import around_gradients, spoil_once
from support.models import events, examples, lines, make_job, model, run, series
from support.ranks import run_ranks

NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, count: random.normal(0, 0.2, count),
    "heavy-tailed": lambda random, count: 0.115 * random.standard_t(3, count),
    "small": lambda random, count: random.normal(0, 0.02, count),
}


def losses(random: np.random.Generator, noise: str, count: int = 400) -> np.ndarray:
    """Falls as the losses of a small model do: soon, and then ever less."""
    falls_in = 25 if noise == "small" else 100
    return 2 + 3 * np.exp(-np.arange(count) / falls_in) + NOISES[noise](random, count)


def alarms(values: np.ndarray, begin: int, end: int) -> list[int]:
    return [step for step in range(begin, end) if has_spiked(list(values[: step + 1]))]


@pytest.mark.parametrize("noise", NOISES)
def test_fifty_noisy_but_sound_curves_raise_no_alarm(noise: str) -> None:
    random = np.random.default_rng(1)
    assert [alarms(losses(random, noise), 0, 400) for _ in range(50)] == [[]] * 50


@pytest.mark.parametrize("noise", NOISES)
def test_a_rise_by_four_deviations_is_found_while_it_lasts(noise: str) -> None:
    random, found = np.random.default_rng(2), 0
    earliest = 100 if noise == "small" else HISTORY  # before, each step brings more than its noise
    for _ in range(100):
        values, begin = losses(random, noise), int(random.integers(earliest, 380))
        values[begin : begin + 16] += 4 * (0.02 if noise == "small" else 0.2)
        found += bool(alarms(values, begin, begin + 16))
    assert found >= 95


def test_losses_that_fall_and_level_off_raise_no_alarm() -> None:
    steps = np.arange(200)
    for falls_in in (3, 10, 30, 100):
        random = np.random.default_rng(falls_in)
        for height in (0.0, 1.0, 10.0):  # in deviations of a step's noise
            values = height * 0.1 * (np.exp(-steps / falls_in) + 0.2 * np.maximum(0, 1 - steps / 100))
            assert alarms(values + random.normal(0, 0.1, 200), 0, 200) == []
        assert alarms(np.exp(-steps / falls_in), 0, 200) == []


def test_single_high_losses_are_no_spike() -> None:
    random = np.random.default_rng(3)
    values = 0.01 + 4.0 * (random.random(400) < 0.1)
    assert alarms(values, 0, 400) == []


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model("llama", tmp_path / "base")


def train_losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["values"]["loss/train/total"] for row in lines(folder) if "lr" in row["values"]}


def test_a_spike_is_rolled_back_and_its_data_passed_over(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around_gradients(monkeypatch, spoil_once(60))
    job, folder = make_job(
        tmp_path, rows=examples(40), base=base, training_duration="100ba", save_interval="10ba", warmup=0.0
    )
    assert run(job, folder)
    [warning] = events(folder, "WARNING")
    first, last = warning["steps"]
    assert 55 < first <= 61 and last - first == RUN - 1
    assert warning["back_to"] in (50, 60) and len(warning["examples"]) == 4 * RUN
    reported = [row["step"] for row in lines(folder.metrics) if "lr" in row["values"]]
    again = reported[reported.index(last - 1) + 1 :]
    assert set(again) == set(range(warning["back_to"] + 1, 101)) - set(range(first, last + 1))
    final = train_losses(folder.metrics)
    assert final[100] < final[1]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000090", "step-00000100"]


def test_a_step_that_is_not_finite_is_passed_over_and_leaves_no_trace(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(_: Stepper, step: int, gradients: Callable[[], Gradients]) -> Gradients:
        result = gradients()
        return result._replace(norm=float("nan")) if step == 4 else result

    around_gradients(monkeypatch, spoil)
    results = []
    for save_interval in ("3ba", "100ba"):  # with a checkpoint to go back to, and without
        job, folder = make_job(
            tmp_path / save_interval,
            rows=examples(40),
            base=base,
            training_duration="10ba",
            save_interval=save_interval,
        )
        assert run(job, folder)
        assert events(folder, "WARNING")[0]["steps"] == [5, 5]
        assert set(train_losses(folder.metrics)) == set(range(1, 11)) - {5}
        results.append(load_file(folder.final / "model.safetensors"))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_trap_6_steps_that_stay_broken_fail_the_run_and_say_what_to_change(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around_gradients(
        monkeypatch,
        lambda _, step, gradients: gradients()._replace(loss=float("inf")) if step >= 4 else gradients(),
    )
    job, folder = make_job(tmp_path, rows=examples(40), base=base, training_duration="20ba", save_interval="2ba")
    with pytest.raises(RequestError, match="after going back 3 times") as caught:
        run(job, folder)
    assert "lower the learning rate, to 0.0003" in str(caught.value)
    assert len(events(folder, "WARNING")) == 3
    assert not folder.final.exists()
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]


def test_the_best_checkpoint_is_registered_and_training_ends_when_it_gets_worse(tmp_path: Path, base: Path) -> None:
    job, folder = make_job(
        tmp_path,
        rows=examples(8),
        held_out=examples(8, seed=5),
        base=base,
        training_duration="400ba",
        learning_rate=1e-2,
        lr_scheduler="constant",
        eval_interval="2ba",
        save_interval="400ba",
        keep_checkpoints=1,
        early_stopping_patience=4,
        register_checkpoint="best",
        eval_data_path="data.jsonl",
    )
    assert run(job, folder)
    by_step = {
        row["step"]: row["values"]["metrics/eval/LanguageCrossEntropy"]
        for row in lines(folder.metrics)
        if "metrics/eval/LanguageCrossEntropy" in row["values"] and row["step"]
    }
    best = min(by_step, key=lambda step: by_step[step])
    last = max(by_step)
    assert last == best + 8 < 400
    final = load_file(folder.final / "model.safetensors")
    kept = load_file(folder.checkpoint(best) / "trainable.safetensors")
    assert all(torch.equal(final[name], kept[name]) for name in final)
    [finished] = events(folder, "TRAIN_FINISHED")
    assert finished["metrics"]["metrics/eval/LanguageCrossEntropy"] == by_step[best]


@pytest.mark.parametrize("field", ["early_stopping_patience", "register_checkpoint"])
def test_choosing_by_held_out_data_needs_some(tmp_path: Path, base: Path, field: str) -> None:
    value = {"early_stopping_patience": 2, "register_checkpoint": "best"}[field]
    with pytest.raises(RequestError, match="held-out"):
        make_job(tmp_path, rows=examples(8), base=base, **{field: value})


def test_where_memory_runs_out_the_pieces_become_smaller_and_the_gradient_stays(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(root: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
        job, folder = make_job(root, rows=examples(16), base=base, batch_size=8, training_duration="4ba")
        assert run(job, folder)
        steps = [line["values"] for line in lines(folder.metrics) if "grad_norm" in line["values"]]
        seen = [step[name] for step in steps for name in ("loss/train/total", "grad_norm")]
        return seen, load_file(folder.final / "model.safetensors")

    steps, expected = trained(tmp_path / "plain")
    forward, tokens = TokenLoss.forward, []

    def limited(self: TokenLoss, batch: object) -> object:
        tokens.append(batch.ids.numel())  # type: ignore[attr-defined]
        if tokens[-1] > 64:
            raise torch.OutOfMemoryError("planted")
        return forward(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenLoss, "forward", limited)
    limited_steps, found = trained(tmp_path / "limited")
    assert max(tokens) > 64 and tokens[-1] <= 64
    assert len(steps) == 8 and limited_steps == pytest.approx(steps, rel=1e-4)
    before = load_file(base / "model.safetensors")
    for name in expected:
        # AdamW moves an element whose gradient is nearly nothing by its sign, which rounding decides.
        moved = (expected[name] - before[name]).norm()
        assert (found[name] - expected[name]).norm() < 1e-3 * moved


def test_where_not_even_one_example_fits_the_failure_tells_how_long_it_is(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> object:
        raise torch.OutOfMemoryError("planted")

    job, folder = make_job(tmp_path, rows=examples(8), base=base, batch_size=8, training_duration="4ba")
    monkeypatch.setattr(TokenLoss, "forward", exhausted)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(job, folder)
    longest = max(len(ids) for ids, _ in examples(8))
    assert f"step 1, whose longest example has {longest} tokens" in failure_event(caught.value, job.request)[1]


SHORT_OF_MEMORY = """
import os
import torch
from fm_local.trainer import device
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.step import Stepper

device.micro_batch_tokens = lambda _: {tokens}
forward, accumulate, calls, told = TokenLoss.forward, Stepper._accumulate, 0, []

def tell(word):
    told.append(word)
    with open({told!r}, "a") as file:
        file.write(word + " ")

def begin(*arguments):
    global calls
    calls = 0
    tell("begins")
    return accumulate(*arguments)

def fail(*_):
    tell("fails")
    raise torch.OutOfMemoryError("planted")

def planted(self, batch):
    global calls
    calls += 1
    due = calls == {piece} and told == ["begins"]
    if due and not {backward}:
        fail()
    loss, right = forward(self, batch)
    if due:
        loss.register_hook(fail)
    return loss, right

if {piece} and os.environ["RANK"] == "1":
    Stepper._accumulate, TokenLoss.forward = begin, planted
"""


def train_short_of_memory(root: Path, base: Path, *, tokens: int, piece: int, backward: bool = False) -> list[float]:
    """Two processes train with so many `tokens` at once, of which in the first step the second one's memory runs out
    with its `piece`, counted from 1 (0: never). Returns each step's loss and norm; `root`/told says what that one did.
    """
    rows = examples(24)
    _, folder = make_job(root, rows=rows, base=base, batch_size=12, training_duration="4ba", num_processes=2)
    told = str(root / "told")
    run_ranks(folder, before=SHORT_OF_MEMORY.format(told=told, tokens=tokens, piece=piece, backward=backward))
    return [*series(folder, "loss/train/total"), *series(folder, "grad_norm")]


@pytest.mark.parametrize(("tokens", "piece"), [(2048, 1), (64, 1), (64, 2)])
def test_a_process_short_of_memory_goes_on_in_smaller_pieces_while_the_others_wait(
    tmp_path: Path, base: Path, tokens: int, piece: int
) -> None:
    expected = train_short_of_memory(tmp_path / "plain", base, tokens=tokens, piece=0)
    found = train_short_of_memory(tmp_path / "short", base, tokens=tokens, piece=piece)
    assert (tmp_path / "short" / "told").read_text().split() == ["begins", "fails", *["begins"] * 4]
    assert len(found) == 8 and found == pytest.approx(expected, rel=1e-4)


def test_memory_that_runs_out_while_gradients_are_exchanged_ends_the_run(tmp_path: Path, base: Path) -> None:
    with pytest.raises(AssertionError, match="exit code"):
        train_short_of_memory(tmp_path, base, tokens=2048, piece=1, backward=True)
    assert (tmp_path / "told").read_text().split() == ["begins", "fails"]
