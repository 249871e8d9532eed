"""A preflight of a trainer with a planted fault names the fault. The faults are patches of tests/mutants."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mutants.run import HERE, ROOT, apply
from support.learners import word_pairs

_SCRIPT = """
import sys
import fm
from fm.ladder import climbing
# Whether anything is learnt is not the question here.
climbing.overfit = lambda *_: fm.Rung(name="overfit", outcome="ok", found="left out")
found = fm.preflight("fm/nano-llama", sys.argv[1], task_type="INSTRUCTION_FINETUNE", method="full", precision="fp32",
                     batch_size=8, num_processes=2)
print(found.model_dump_json())
"""


@pytest.mark.parametrize(
    ("patch", "rung", "check", "says"),
    [
        ("duplicated-shard", "2 processes", "examples", "processes 0 and 1 took the same examples"),
        ("missing-all-reduce", "2 processes", "gradients", "the gradients of processes 0 and 1 differ"),
        ("every-rank-logs", "2 processes", "logger", "2 processes reported TRAIN_STARTED"),
        ("optimiser-state-not-restored", "1 process", "checkpoint", "training on from a checkpoint is not the same"),
    ],
)
def test_a_planted_fault_is_found_at_its_rung(tmp_path: Path, patch: str, rung: str, check: str, says: str) -> None:
    root = tmp_path / "sources"
    for part in ("sdk", "local_backend"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    assert apply(HERE / f"{patch}.patch", root)
    paths = os.pathsep.join(str(root / part) for part in ("sdk", "local_backend"))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(word_pairs(tmp_path / "pairs.jsonl", 40))],
        env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    failed = json.loads(done.stdout)["rungs"][-1]
    assert (failed["name"], failed["outcome"]) == (rung, "fail"), failed
    last = failed["checks"][-1]
    assert (last["name"], last["passed"]) == (check, False), failed
    assert says in failed["found"]
    assert failed["remedy"]
