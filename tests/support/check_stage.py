"""The check stage as a process of its own, as an agent starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.data import check, locate
from fm.job import Job
from fm.layout import StageFolder
from fm.request import TrainRequest
from fm.types import ModelRef

NANO = ModelRef(kind="preset", name="fm/nano-llama")


def stage(
    tmp_path: Path, data: Path, *, model: ModelRef = NANO, held_out: Path | None = None, **request: Any
) -> StageFolder:
    """A check stage's folder with its job, as an agent makes it."""
    asked = TrainRequest.build({"model": model.name, "train_data_path": str(data), **request})
    folder = StageFolder(tmp_path / "storage" / "runs" / f"run-{time.monotonic_ns()}" / "check")
    refs = [check(locate(str(path), field="x"), asked.task_type) if path else None for path in (data, held_out)]
    Job(
        stage="check",
        run_id="run-1",
        run_name="one",
        attempt=0,
        request=asked,
        model=model,
        train_data=refs[0],
        eval_data=refs[1],
        storage_root=str(tmp_path / "storage"),
        started_at=datetime.now(UTC),
    ).write(folder)
    return folder


def start(folder: StageFolder, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fm_local.prepare", str(folder.path)]
    with folder.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)


def run(folder: StageFolder, **options: Any) -> tuple[int, dict[str, Any]]:
    """The exit code, and the last event."""
    code = start(folder, **options).wait(60)
    lines = folder.events.read_text().splitlines()
    return code, json.loads(lines[-1]) if lines else {}


def shards(tmp_path: Path) -> set[str]:
    folder = tmp_path / "storage" / "shards"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
