"""What a training saves: it is what was trained, and says how to answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.gradients import plain_mean_gradient
from support.models import END, EOS, events, examples, make_job, model, run, series


@pytest.mark.parametrize("method", ["lora", "full"])
def test_trap_11_the_saved_generation_config_stops_at_the_end_of_a_turn(tmp_path: Path, method: str) -> None:
    job, folder = make_job(
        tmp_path,
        rows=examples(4),
        base=model("llama", tmp_path / "base"),
        method=method,
        training_duration="1ba",
        task_type="CHAT_COMPLETION",
    )
    run(job, folder)
    saved = json.loads((folder.final / "generation_config.json").read_text())
    assert set(saved["eos_token_id"]) == {EOS, END}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_saved_generation_config_samples_as_the_base_does(tmp_path: Path, method: str) -> None:
    base = model("llama", tmp_path / "base")
    # As some public models have it: how to sample, and not that they do. transformers reads it, and won't save it.
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6, "top_p": 0.9}))
    job, folder = make_job(tmp_path, rows=examples(4), base=base, method=method, training_duration="1ba")
    run(job, folder)
    saved = json.loads((folder.final / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)
    assert EOS in saved["eos_token_id"]


def test_trap_25_the_first_layers_adapter_learns_under_activation_checkpointing(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    losses = []
    for checkpointing in (False, True):
        job, folder = make_job(
            tmp_path / str(checkpointing), rows=examples(8), base=base, method="lora", training_duration="3ba"
        )
        run(job, folder, checkpointing=checkpointing)
        assert [said["checkpointing"] for said in events(folder, "MODEL_INITIALIZED")] == [checkpointing]
        losses.append(series(folder, "loss/train/total"))
    weights = load_file(folder.final / "adapter_model.safetensors")
    first = {name: w for name, w in weights.items() if ".layers.0." in name and "lora_B" in name}
    assert first
    assert all(tensor.abs().max() > 0 for tensor in first.values())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_trap_26_an_adapter_opened_in_a_new_process_gives_the_logits_it_was_trained_to(tmp_path: Path) -> None:
    base = model("llama", tmp_path / "base")
    job, folder = make_job(
        tmp_path,
        rows=examples(8),
        held_out=examples(5, seed=3),
        base=base,
        method="lora",
        training_duration="4ba",
        learning_rate=1e-2,
    )
    run(job, folder)
    script = """
import sys, torch, json
from pathlib import Path
from fm_local.models.load import open_model
tuned = open_model(Path(sys.argv[1]), base_path=Path(sys.argv[2]), device="cpu")
total = labels = 0
with torch.no_grad():
    for ids, mask in json.loads(sys.argv[3]):
        logits = tuned.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            if mask[at]:
                total -= logits[at - 1, ids[at]].item(); labels += 1
print(total / labels)
"""
    command = [sys.executable, "-c", script, str(folder.final), str(base), json.dumps(examples(5, seed=3))]
    reopened = subprocess.run(command, capture_output=True, text=True, check=True)
    trained = series(folder, "metrics/eval/LanguageCrossEntropy")
    assert float(reopened.stdout) == pytest.approx(trained[-1], rel=1e-5)
    assert trained[-1] < trained[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trap_27_a_fully_trained_model_with_tied_embeddings_reopens_as_it_was(tmp_path: Path, family: str) -> None:
    base = model(family, tmp_path / "base", tied=True)
    held_out = examples(6, seed=5)
    job, folder = make_job(tmp_path, rows=examples(8), held_out=held_out, base=base, training_duration="4ba")
    run(job, folder)
    value, gradients = plain_mean_gradient(folder.final, held_out)
    assert value == pytest.approx(series(folder, "metrics/eval/LanguageCrossEntropy")[-1], rel=1e-5)
    assert not any("lm_head" in name for name in gradients)


def test_trap_30_an_adapter_on_the_head_is_trained(tmp_path: Path) -> None:
    job, folder = make_job(
        tmp_path,
        rows=examples(8),
        base=model("llama", tmp_path / "base"),
        method="lora",
        training_duration="2ba",
        lora={"target_modules": ["lm_head"]},
    )
    run(job, folder)
    weights = load_file(folder.final / "adapter_model.safetensors")
    assert next(w for name, w in weights.items() if "lm_head.lora_B" in name).abs().max() > 0
