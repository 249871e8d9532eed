"""What a training that goes back leaves alone, what it says, and figures that are none."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fm.errors import RequestError
from fm.files import read_manifest
from fm.layout import RunFolder
from fm_local.trainer import checkpoint, device
from fm_local.trainer.optimizer import TorchOptimizer, make_optimizer
from fm_local.trainer.schedule import Position
from fm_local.trainer.step import Gradients, Stepper
from support.disturb import around_gradients, spoil_once
from support.models import events, examples, lines, make_job, model, run

EVAL = "metrics/eval/LanguageCrossEntropy"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model("llama", tmp_path / "base")


def test_going_back_past_checkpoints_of_the_resumed_run_leaves_them_and_is_not_undone_by_a_restart(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"rows": examples(40), "base": base, "save_interval": "5ba", "warmup": 0.0}
    job, parent = make_job(tmp_path, **common, training_duration="60ba", keep_checkpoints=3)
    assert run(job, parent)
    parents = sorted(parent.checkpoints.iterdir())
    assert [path.name[-2:] for path in parents] == ["50", "55", "60"]
    # What the parent learnt last turns out to be bad in the child's first step.
    monkeypatch.setattr("fm_local.trainer.loop.trouble_since", lambda at, _: 52 if at.step == 60 else None)
    child = RunFolder(tmp_path / "runs" / "run-1").attempt(1)
    job = job.model_copy(update={"run_id": "run-1", "resume_from": tuple(map(str, parents))})
    job = job.model_copy(update={"request": job.request.model_copy(update={"training_duration": "70ba"})})
    job.write(child)
    asked = iter(range(100))
    assert not run(job, child, stop_requested=lambda: next(asked) >= 3)
    [warning] = events(child, "WARNING")
    assert warning["back_to"] == 50
    assert sorted(parent.checkpoints.iterdir()) == parents
    assert all(read_manifest(path, verify=True) for path in parents)
    own = sorted(child.checkpoints.iterdir())
    assert own[0].name == "step-00000050"
    newest = checkpoint.newest_whole([*reversed(own), *reversed(parents)])
    assert newest == own[-1]
    again = RunFolder(tmp_path / "runs" / "run-1").attempt(2)
    job = job.model_copy(update={"attempt": 2, "resume_from": tuple(map(str, [*own, *parents]))})
    job.write(again)
    assert run(job, again)
    assert events(again, "WARNING") == []
    assert {line["step"] for line in lines(again.metrics)} == set(range(62, 71))


def test_a_spike_without_a_checkpoint_is_no_return_and_loses_no_progress(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around_gradients(monkeypatch, spoil_once(60))
    job, folder = make_job(
        tmp_path, rows=examples(40), base=base, training_duration="100ba", save_interval="1000ba", warmup=0.0
    )
    assert not run(job, folder, stop_requested=lambda: bool(events(folder, "WARNING")))
    [warning] = events(folder, "WARNING")
    [saved] = folder.checkpoints.iterdir()
    assert int(saved.name[-3:]) == warning["steps"][1] - 1


@pytest.mark.parametrize("first", [0, 4])
def test_broken_steps_without_a_checkpoint_end_the_run_and_no_return_is_told_of(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    def spoil(_: Stepper, step: int, gradients: Callable[[], Gradients]) -> Gradients:
        return gradients()._replace(loss=math.nan) if step >= first else gradients()

    around_gradients(monkeypatch, spoil)
    job, folder = make_job(tmp_path, rows=examples(40), base=base, training_duration="20ba", save_interval="100ba")
    with pytest.raises(RequestError, match="lower the learning rate") as caught:
        run(job, folder)
    assert "going back" not in str(caught.value)
    assert "sound" not in str(caught.value)


def test_a_held_out_loss_that_is_not_finite_is_told_and_never_the_best(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fm_local.trainer import loop

    plain = loop.evaluate
    broken_values = iter([None, math.nan, None, None, math.inf])  # of the looks at steps 0, 2, 4, 6, 8

    def broken(*args: Any, **options: Any) -> dict[str, float]:
        values, instead = plain(*args, **options), next(broken_values)
        return values if instead is None else {**values, EVAL: instead}

    monkeypatch.setattr(loop, "evaluate", broken)
    job, folder = make_job(
        tmp_path,
        rows=examples(40),
        held_out=examples(5, seed=9),
        base=base,
        training_duration="8ba",
        eval_interval="2ba",
        save_interval="100ba",
        register_checkpoint="best",
        eval_data_path="data.jsonl",
    )
    assert run(job, folder)
    assert [warning["step"] for warning in events(folder, "WARNING")] == [2, 8]
    [finished] = events(folder, "TRAIN_FINISHED")
    assert finished["metrics"][EVAL] == min(line["values"].get(EVAL, 9e9) for line in lines(folder.metrics)[1:])
    kept = load_file(folder.checkpoint(6) / "trainable.safetensors")
    final = load_file(folder.final / "model.safetensors")
    assert all(torch.equal(final[name], kept[name]) for name in final)


def test_a_restored_optimiser_has_what_the_checkpoint_has_where_its_kernel_reads_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).attempt(1)
    layers = {"a": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Parameter(torch.ones(2))}
    inner = make_optimizer("adamw", layers, 0.0)
    optimizer = TorchOptimizer(inner, layers)
    layers["a"].grad = torch.ones(2, 2)
    optimizer.step()
    path, _ = checkpoint.save(
        folder, Position(step=1), checkpoint.collect(layers, optimizer), same={}, metrics={}, keep=1, protected=None
    )
    layers["b"].grad = torch.ones(2)
    optimizer.step()
    checkpoint.restore(path, layers, optimizer, same={})
    assert set(inner.state) == {layers["a"]}

    elsewhere = {name: torch.nn.Parameter(layer.detach().to("meta")) for name, layer in layers.items()}
    inner = torch.optim.AdamW(elsewhere.values())
    inner.param_groups[0]["fused"] = True  # as on a GPU, whose part the device "meta" plays here
    checkpoint.restore(path, elsewhere, TorchOptimizer(inner, elsewhere), same={})
    assert {entry.device.type for entry in inner.state[elsewhere["a"]].values()} == {"meta"}


def test_attention_is_not_written_out_where_one_example_is_long() -> None:
    cpu = torch.device("cpu")
    assert device.prefers_plain_attention(cpu, "bf16", 98.0, 877)
    assert not device.prefers_plain_attention(cpu, "bf16", 98.0, 8192)


def test_what_takes_long_is_announced_until_the_next_step_is_done(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, int, str | None]] = []

    def note(what: str, after: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **options: Any) -> Any:
            beat = json.loads(folder.heartbeat.read_bytes())
            found.append((what, beat["step"], (beat["pause"] or {}).get("why")))
            return after(*args, **options)

        return noting

    job, folder = make_job(
        tmp_path,
        rows=examples(20),
        base=base,
        training_duration="3ba",
        save_interval="2ba",
        eval_interval="100ba",
        eval_prompts=["a"],
    )
    for place in ("loop.make_ready", "checkpoint.save", "loop.save_final", "loop.answer_prompts"):
        module, name = place.split(".")
        owner = importlib.import_module(f"fm_local.trainer.{module}")
        monkeypatch.setattr(owner, name, note(name, getattr(owner, name)))
    around_gradients(monkeypatch, lambda _, __, gradients: note("step", gradients)())
    assert run(job, folder)
    assert found == [
        ("make_ready", 0, "loading"),
        ("answer_prompts", 0, "answering"),
        ("step", 0, "answering"),
        ("step", 1, None),
        ("save", 2, "saving"),
        ("step", 2, "saving"),
        ("save", 3, "saving"),
        ("answer_prompts", 3, "answering"),
        ("save_final", 3, "saving"),
    ]
