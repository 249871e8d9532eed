"""Killed at any moment, stopped, or disturbed by damage: the weights end as if nothing had happened, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fm.files import digest_file, read_manifest, seal
from fm.job import EXIT_STOPPED
from fm.layout import RunFolder, StageFolder
from fm_local.trainer.checkpoint import newest_whole
from support.models import events, examples, lines, make_job, model, run
from support.waiting import until


def weights_of(folder: StageFolder) -> str:
    manifest = read_manifest(folder.final, verify=True)
    assert manifest is not None
    name = {"full": "model.safetensors", "adapter": "adapter_model.safetensors"}[manifest["kind"]]
    return digest_file(folder.final / name)


def checkpoints_of(folder: StageFolder) -> list[Path]:
    return sorted(folder.checkpoints.glob("step-*"))


def start(folder: StageFolder) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with folder.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fm_local.trainer", str(folder.path)], env=environment, stdout=log, stderr=log
        )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return model("llama", tmp_path / "base", dropout=0.1)


SETTINGS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "lora", "precision": "bf16", "lora": {"dropout": 0.1}},
    {"method": "qlora", "precision": "bf16", "lora": {"dropout": 0.1}},
    {"method": "lora", "lora": {"use_dora": True, "use_rslora": True}, "new_tokens": ("<new>",)},
    {"method": "full", "optimizer": "adafactor", "weight_decay": 0.01},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["full", "lora-bf16", "qlora-bf16", "dora-new-tokens", "adafactor"])
def test_trap_31_a_run_that_is_stopped_twice_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, base: Path, settings: dict[str, Any]
) -> None:
    rows = examples(18)
    common = {"rows": rows, "base": base, "save_interval": "100ba", "training_duration": "3ep", **settings}
    whole_job, whole = make_job(tmp_path / "whole", **common)
    assert run(whole_job, whole)

    found: list[Path] = []
    steps = iter([4, 7, 10**9])
    for attempt in (1, 2, 3):
        # Evaluating and sampling between the steps must not change what they compute.
        job, folder = make_job(
            tmp_path / "parts",
            **common,
            attempt=attempt,
            resume_from=found,
            held_out=examples(5, seed=9),
            eval_prompts=["a"],
            eval_interval="4ba",
        )
        asked = iter(range(10**9))
        after = next(steps)
        finished = run(job, folder, stop_requested=lambda asked=asked, after=after: next(asked) >= after)
        assert finished == (attempt == 3)
        found += checkpoints_of(folder)
    assert weights_of(folder) == weights_of(whole)
    together = {
        line["step"]: line["values"]["loss/train/total"]
        for attempt in (1, 2, 3)
        for line in lines(folder.path.parent / str(attempt) / "metrics.jsonl")
        if "lr" in line["values"]
    }
    alone = {line["step"]: line["values"]["loss/train/total"] for line in lines(whole.metrics)}
    assert together == alone


def test_kill_9_at_random_moments_ends_with_the_weights_of_the_uninterrupted_run(tmp_path: Path, base: Path) -> None:
    common = {"rows": examples(60), "base": base, "save_interval": "2ba", "training_duration": "8ep"}
    _, whole = make_job(tmp_path / "whole", **common)
    assert start(whole).wait(120) == 0

    luck = random.Random(5)
    found: list[Path] = []
    for attempt in range(1, 5):
        _, folder = make_job(tmp_path / "parts", **common, attempt=attempt, resume_from=found)
        process = start(folder)
        if attempt < 4:
            # Saves follow each other so closely that most kills fall into one.
            until(lambda folder=folder: len(checkpoints_of(folder)) > 0, seconds=90, every=0.01)
            time.sleep(luck.uniform(0, 0.4))
            process.kill()
            process.wait()
            found += checkpoints_of(folder)
        else:
            assert process.wait(120) == 0
    assert events(folder, "TRAIN_STARTED")[0]["step"] > 0
    assert weights_of(folder) == weights_of(whole)


def test_sigterm_saves_a_whole_checkpoint_of_the_last_step_and_exits_75(tmp_path: Path, base: Path) -> None:
    _, folder = make_job(tmp_path, rows=examples(60), base=base, save_interval="5000ba", training_duration="5000ep")
    process = start(folder)
    until(lambda: folder.metrics.exists() and len(lines(folder.metrics)) > 3, seconds=90)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_STOPPED
    saved = events(folder, "CHECKPOINT_SAVED")[-1]
    assert saved["step"] == lines(folder.metrics)[-1]["step"]
    assert read_manifest(Path(saved["path"]), verify=True) is not None
    assert newest_whole(checkpoints_of(folder)) == Path(saved["path"])


def test_a_checkpoint_brought_from_elsewhere_counts_as_one_of_its_run(tmp_path: Path) -> None:
    def saved(root: str, run_id: str, attempt: int, step: int) -> Path:
        folder = RunFolder(tmp_path / root / "runs" / run_id).attempt(attempt).checkpoint(step)
        folder.mkdir(parents=True)
        seal(folder, kind="checkpoint", step=step)
        return folder

    here, parents = saved("here", "run-1", 1, 100), saved("here", "run-0", 1, 900)
    brought = saved("brought", "run-1", 2, 500)
    assert newest_whole([here, brought, parents]) == newest_whole([here, parents, brought]) == brought


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, base: Path) -> None:
    job, folder = make_job(tmp_path, rows=examples(20), base=base, save_interval="2ba", training_duration="8ba")
    run(job, folder)
    older, newest = checkpoints_of(folder)
    assert newest_whole([older, newest]) == newest
    damaged = bytearray((newest / "trainable.safetensors").read_bytes())
    damaged[-5] ^= 1
    (newest / "trainable.safetensors").write_bytes(damaged)
    assert newest_whole([newest, older]) == older
    again, second = make_job(
        tmp_path,
        rows=examples(20),
        base=base,
        save_interval="2ba",
        training_duration="8ba",
        attempt=2,
        resume_from=[older, newest],
    )
    run(again, second)
    assert weights_of(second) == weights_of(folder)


def test_running_twice_gives_identical_files(tmp_path: Path, base: Path) -> None:
    digests = []
    for name in ("one", "two"):
        job, folder = make_job(tmp_path / name, rows=examples(20), base=base, method="lora", training_duration="6ba")
        run(job, folder)
        manifest = read_manifest(folder.final, verify=True)
        assert manifest is not None
        digests.append(manifest["files"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("settings", "differing"),
    [({"seed": 18}, "seed"), ({"batch_size": 8}, "batch_size"), ({"lora": {"rank": 4}}, "trainable parameters")],
    ids=["seed", "batch", "shape"],
)
def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, base: Path, settings: dict[str, Any], differing: str
) -> None:
    from fm.errors import RequestError

    common: dict[str, Any] = {"rows": examples(20), "base": base, "training_duration": "4ba", "method": "lora"}
    job, folder = make_job(tmp_path, **common)
    run(job, folder)
    other, second = make_job(tmp_path, **common, **settings, attempt=2, resume_from=checkpoints_of(folder))
    with pytest.raises(RequestError, match=f"different {differing}"):
        run(other, second)


def test_an_older_attempt_trains_nothing_beside_a_newer_one(tmp_path: Path, base: Path) -> None:
    _, older = make_job(tmp_path, rows=examples(20), base=base)
    make_job(tmp_path, rows=examples(20), base=base, attempt=2)
    assert start(older).wait(60) == EXIT_STOPPED
    assert older.process.exists()
    assert not older.events.exists()


def test_a_wall_clock_budget_spent_by_earlier_attempts_is_not_given_again(tmp_path: Path, base: Path) -> None:
    job, folder = make_job(
        tmp_path,
        rows=examples(20),
        base=base,
        training_duration="60s",
        elapsed=58.0,
        started_at=datetime.now(UTC) - timedelta(seconds=1),
    )
    began = time.monotonic()
    assert run(job, folder)
    assert time.monotonic() - began < 10
    assert events(folder, "TRAIN_FINISHED")[0]["step"] == 1
