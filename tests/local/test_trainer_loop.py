"""Durations, the schedule, what is reported, and how a training ends that can't go on."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fm.duration import Duration
from fm.errors import MissingExtra
from fm.files import read_manifest
from fm.job import EXIT_FAILED
from fm_local.trainer import device, schedule
from fm_local.trainer.batching import _GROUP_SHARE, epoch_steps, micro_batches, rank_share
from fm_local.trainer.rates import default_rate, rate_warning
from support.models import events, examples, lines, make_job, model, run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model("llama", tmp_path / "base")


LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=300).map(np.array)


@given(lengths=LENGTHS, batch_size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_example_is_trained_exactly_once_in_an_epoch(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    steps = epoch_steps(len(lengths), batch_size, seed, epoch)
    assert sorted(np.concatenate(steps)) == list(range(len(lengths)))
    assert sorted(map(len, steps))[1:] == [batch_size] * (len(steps) - 1)
    again = epoch_steps(len(lengths), batch_size, seed, epoch)
    assert all((one == two).all() for one, two in zip(steps, again, strict=True))


@given(lengths=LENGTHS, max_tokens=st.integers(1, 2000), world=st.integers(1, 5))
def test_micro_batches_of_all_ranks_hold_each_example_once_within_the_token_budget(
    lengths: np.ndarray, max_tokens: int, world: int
) -> None:
    everything = np.arange(len(lengths))
    seen = []
    for rank in range(world):
        for group in micro_batches(rank_share(everything, lengths, rank, world), lengths, max_tokens):
            assert len(group) == 1 or len(group) * lengths[group].max() <= max_tokens
            seen += group.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_epochs_differ_in_their_order_and_steps_hold_examples_of_all_lengths() -> None:
    lengths = np.random.default_rng(0).integers(2, 400, 2000)
    first, second = epoch_steps(len(lengths), 8, 1, 0), epoch_steps(len(lengths), 8, 1, 1)
    assert any((one != two).any() for one, two in zip(first, second, strict=True))
    # The mean of eight random ones varies by their deviation over the root of eight.
    means = [lengths[step].mean() for step in first]
    assert np.std(means) == pytest.approx(lengths.std() / 8**0.5, rel=0.15)
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9).map(np.array), max_tokens=st.integers(1, 90))
def test_no_other_way_to_cut_sorted_examples_pads_less(lengths: np.ndarray, max_tokens: int) -> None:
    def cost(groups: Iterable[np.ndarray]) -> float:
        return sum(len(group) * group.max() + _GROUP_SHARE * max_tokens for group in groups)

    ordered = np.sort(lengths)[::-1]
    ways = (
        np.split(ordered, [at for at in range(1, len(ordered)) if cuts >> at & 1]) for cuts in range(1 << len(ordered))
    )
    allowed = (way for way in ways if all(len(g) == 1 or len(g) * g.max() <= max_tokens for g in way))
    found = micro_batches(np.arange(len(lengths)), lengths, max_tokens)
    assert cost(lengths[group] for group in found) == pytest.approx(min(map(cost, allowed)))


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5])
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(shape: schedule.Shape, warmup: float) -> None:
    rates = [schedule.learning_rate((n + 0.5) / 1000, peak=2.0, shape=shape, warmup=warmup) for n in range(1000)]
    assert 0 < min(rates) <= max(rates) <= 2.0
    assert max(rates) == pytest.approx(2.0, rel=0.01)
    top = int(warmup * 1000)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == 2.0 if shape == "constant" else rates[-1] < 0.01


@pytest.mark.parametrize(
    ("text", "steps"), [("1ep", 3), ("2ep", 6), ("7ba", 7), ("100tok", 3), ("101tok", 4), ("200tok", 6), ("1tok", 1)]
)
def test_a_counted_duration_is_a_number_of_steps(text: str, steps: int) -> None:
    lengths = np.array([10] * 10)
    assert schedule.steps_of(Duration.parse(text), lengths, 4, 0) == steps


@given(lengths=LENGTHS, tokens=st.integers(1, 5000), batch_size=st.integers(1, 9))
def test_a_token_duration_ends_with_the_step_that_reaches_it(lengths: np.ndarray, tokens: int, batch_size: int) -> None:
    steps = schedule.steps_of(Duration.parse(f"{tokens}tok"), lengths, batch_size, 3)
    seen: list[int] = []
    epoch = 0
    while len(seen) < steps:
        seen += [int(lengths[step].sum()) for step in epoch_steps(len(lengths), batch_size, 3, epoch)]
        epoch += 1
    assert sum(seen[: steps - 1]) < tokens <= sum(seen[:steps])


def clock_that_moves_when_read(seconds: float = 0.05) -> tuple[datetime, Callable[[], float]]:
    """The present, and a clock on which `seconds` pass whenever it is read, so that how busy the machine is has no part
    in what a test finds. Real budgets are kept in tests/faults/test_budget.py."""
    start, ticks = datetime.now(UTC), itertools.count()
    return start, lambda: start.timestamp() + seconds * next(ticks)


def test_a_wall_clock_budget_is_used_up_and_kept_with_the_rate_fallen_to_a_twentieth(
    tmp_path: Path, base: Path
) -> None:
    start, now = clock_that_moves_when_read()
    job, folder = make_job(
        tmp_path, rows=examples(40), held_out=examples(9, seed=2), base=base, training_duration="30s", started_at=start
    )
    assert run(job, folder, now=now)
    spent = now() - start.timestamp()
    assert 20 < spent <= 30
    rates = [line["values"]["lr"] for line in lines(folder.metrics) if "lr" in line["values"]]
    assert rates[-1] <= 0.05 * 1e-3
    assert max(rates) > 0.9 * 1e-3
    assert read_manifest(folder.final, verify=True)


def test_a_wall_clock_run_that_is_stopped_goes_on_where_its_schedule_was(tmp_path: Path, base: Path) -> None:
    common = {"rows": examples(40), "base": base, "training_duration": "30s"}
    start, now = clock_that_moves_when_read()
    job, first = make_job(tmp_path, **common, started_at=start)
    assert not run(job, first, now=now, stop_requested=lambda: now() - start.timestamp() > 12)
    spent = now() - start.timestamp()
    before = [line["values"]["lr"] for line in lines(first.metrics)][-1]
    later, now = clock_that_moves_when_read()
    job, second = make_job(
        tmp_path,
        **common,
        started_at=later,
        elapsed=spent,
        attempt=2,
        resume_from=list(first.checkpoints.iterdir()),
    )
    assert run(job, second, now=now)
    after = [line["values"]["lr"] for line in lines(second.metrics)]
    assert after[0] == pytest.approx(before, rel=0.35)
    assert after[-1] <= 0.05 * 1e-3
    assert spent + now() - later.timestamp() <= 30


def test_what_happened_is_told_in_events_and_figures(tmp_path: Path, base: Path) -> None:
    job, folder = make_job(
        tmp_path,
        rows=examples(20),
        held_out=examples(5, seed=2),
        base=base,
        training_duration="10ba",
        eval_prompts=["a", "b"],
        eval_interval="5ba",
        save_interval="1ep",
        keep_checkpoints=1,
    )
    run(job, folder)
    types = [line["type"] for line in lines(folder.events)]
    assert types[:3] == ["DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_STARTED"]
    assert types[-1] == "TRAIN_FINISHED"
    assert [event["step"] for event in events(folder, "SAMPLES_GENERATED")] == [0, 5, 10]
    samples = events(folder, "SAMPLES_GENERATED")[-1]["samples"]
    assert [sample["prompt"] for sample in samples] == ["a", "b"]
    assert {type(sample["ended"]) for sample in samples} == {bool}
    assert [event["step"] for event in events(folder, "CHECKPOINT_SAVED")] == [5, 10]
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000010"]
    finished = events(folder, "TRAIN_FINISHED")[0]
    assert (finished["step"], finished["epoch"]) == (10, 2.0)
    assert finished["metrics"]["metrics/eval/LanguageCrossEntropy"] > 0
    rows = [line["values"] for line in lines(folder.metrics)]
    steps = [row for row in rows if "lr" in row]
    assert len(steps) == 10
    wanted = {
        "loss/train/total",
        "metrics/train/LanguageCrossEntropy",
        "metrics/train/TokenAccuracy",
        "lr",
        "grad_norm",
        "throughput/tokens_per_sec",
        "time/step_seconds",
        "memory/peak_gib",
    }
    assert all(row.keys() == wanted for row in steps)
    initialised = events(folder, "MODEL_INITIALIZED")[0]
    assert initialised["versions"]["torch"] == torch.__version__
    assert initialised["trainable"] == initialised["parameters"]


def test_a_tokens_seen_counter_counts_no_padding(tmp_path: Path, base: Path) -> None:
    rows = examples(12)
    job, folder = make_job(tmp_path, rows=rows, base=base, training_duration="2ep")
    run(job, folder)
    assert events(folder, "TRAIN_FINISHED")[0]["tokens"] == 2 * sum(len(ids) for ids, _ in rows)


def test_a_rate_meant_for_full_training_is_warned_about_with_lora(tmp_path: Path, base: Path) -> None:
    job, folder = make_job(
        tmp_path, rows=examples(4), base=base, method="lora", learning_rate="5e-7", training_duration="1ba"
    )
    run(job, folder)
    assert "5e-07 is far outside" in lines(folder.events)[2]["message"]
    assert [line["type"] for line in lines(folder.events)].count("WARNING") == 1
    assert rate_warning(5e-7, "full", 1e-4, random_weights=False) is None


def test_default_rates_follow_method_and_size() -> None:
    assert default_rate("lora", 8_000_000_000, random_weights=False) == 3e-4
    assert default_rate("lora", 1_200_000_000, random_weights=False) == 1e-3
    assert default_rate("lora", 100_000_000, random_weights=False) == 2e-3
    assert default_rate("full", 1_200_000_000, random_weights=False) == pytest.approx(1e-4)


def test_figures_reach_tensorboard(tmp_path: Path, base: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job, folder = make_job(
        tmp_path,
        rows=examples(8),
        base=base,
        training_duration="3ba",
        trackers=["tensorboard"],
        experiment_path="/Users/me/trial",
    )
    run(job, folder)
    (file,) = (path for path in folder.trackers.rglob("events.*") if path.parent.name == "Users-me-trial")
    log = EventAccumulator(str(file)).Reload()
    assert [point.step for point in log.Scalars("loss/train/total")] == [1, 2, 3]


def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(device._TRACKER_MODULES, "wandb", "no_such_module")
    job, folder = make_job(tmp_path, rows=examples(4), base=base, trackers=["wandb"])
    with pytest.raises(MissingExtra, match="wandb"):
        run(job, folder)


def test_a_request_that_can_not_be_trained_ends_in_failed_and_exit_1(tmp_path: Path, base: Path) -> None:
    _, folder = make_job(tmp_path, rows=examples(4), base=base, method="lora", lora={"target_modules": ["nothing"]})
    done = subprocess.run([sys.executable, "-m", "fm_local.trainer", str(folder.path)], capture_output=True, text=True)
    assert done.returncode == EXIT_FAILED
    last = lines(folder.events)[-1]
    assert (last["type"], last["data"]["fault"]) == ("FAILED", "user")
    assert "q_proj" in last["message"]
    assert not folder.final.exists()


def test_training_opens_no_socket(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was connected")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for method in ("full", "lora"):
        job, folder = make_job(
            tmp_path / method,
            rows=examples(4),
            held_out=examples(2),
            base=base,
            method=method,
            training_duration="2ba",
            eval_prompts=["a"],
        )
        assert run(job, folder)


def test_a_budget_that_is_over_before_training_begins_still_gives_a_result(tmp_path: Path, base: Path) -> None:
    job, folder = make_job(
        tmp_path, rows=examples(8), base=base, training_duration="5s", started_at=datetime.now(UTC) - timedelta(hours=1)
    )
    assert run(job, folder)
    assert events(folder, "TRAIN_FINISHED")[0]["step"] == 1
