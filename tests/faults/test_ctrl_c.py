"""Ctrl-C at any moment of `ftctl create`: exit code 130, no traceback, and either a whole run or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fm.backends.base import RunFilter
from fm.lifecycle import EventType, Status
from support.data import many_pairs
from support.local import local_backend


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_ctrl_c_leaves_a_whole_run_or_none(seconds: float, tmp_path: Path) -> None:
    data = many_pairs(tmp_path / "pairs.jsonl", 20_000)
    home = tmp_path / "fm"
    options = ["--task-type", "INSTRUCTION_FINETUNE", "--method", "full", "--follow"]
    command = ["create", "fm/nano-llama", str(data), *options]
    # The moments count from when the command line is loaded and begun; before that, Python itself would answer.
    loaded = tmp_path / "loaded"
    script = (
        "from fm.cli import main\n"
        "run = main.run\n"
        f"main.run = lambda arguments: [open({str(loaded)!r}, 'w').close(), run(arguments)][1]\n"
        "main.entry()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        env={**os.environ, "FM_HOME": str(home), "FM_AGENT": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not loaded.exists():
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    with local_backend(home, FM_AGENT="off") as backend:
        runs = backend.runs.list(RunFilter())
        assert len(runs) <= 1
        for run in runs:
            assert run.status is Status.QUEUED
            assert [event.type for event in backend.runs.events(run.id)] == [EventType.CREATED]
    assert [path.name for path in home.rglob("*.tmp")] == []
