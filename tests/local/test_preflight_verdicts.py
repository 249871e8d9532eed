"""`fm.preflight` on small models: its verdicts on planted faults of a request, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.cli.main import run
from support.learners import PLANTED, trained_base, word_pairs
from support.local import processes_of

PAIRS = {"task_type": "INSTRUCTION_FINETUNE"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return word_pairs(tmp_path / "pairs.jsonl", 100)


@pytest.mark.parametrize(("planted", "verdict", "remedy"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_fault_gets_its_verdict(
    base: Path, data: Path, planted: dict[str, Any], verdict: str, remedy: str
) -> None:
    found = fm.preflight(base, data, **PAIRS, **planted)
    assert not found.passed
    (rung,) = found.rungs
    assert (rung.verdict, rung.outcome) == (verdict, "fail"), str(found)
    assert remedy in rung.remedy
    assert rung.trials[-1].learnt
    assert remedy in str(found)


def test_a_sound_request_climbs_to_the_top_and_leaves_nothing(
    base: Path, data: Path, isolated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task-type", "INSTRUCTION_FINETUNE", "--precision", "fp32", "--num-processes", "2", "-o", "json"]
    assert run(["preflight", str(base), str(data), *options]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["passed"]
    overfit, one, two = value["rungs"]
    assert overfit["verdict"] == "learns"
    assert [check["name"] for check in two["checks"]] == [
        "loop", "logger", "examples", "gradients", "as one process", "loss", "checkpoint",
    ]  # fmt: skip
    assert one["tokens_per_second"] > 0 and two["efficiency"] > 0
    assert fm.Preflight.model_validate(value).passed
    assert fm.list() == []
    assert not list((isolated / "fm").glob("preflights/*"))


def test_ctrl_c_ends_everything_and_leaves_nothing(data: Path, isolated: Path) -> None:
    home = isolated / "fm"
    command = [
        sys.executable, "-m", "fm.cli.main", "preflight", "fm/nano-llama", str(data), "--method", "full",
        "--task-type", "INSTRUCTION_FINETUNE",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    give_up = time.monotonic() + 120
    while not any("fm_local.trainer" in " ".join(child.cmdline()) for child in processes_of(home)):
        assert time.monotonic() < give_up
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert processes_of(home) == []
    assert not list(home.glob("preflights/*"))
