"""The folder of a training that is to go to a Ray cluster, without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.job import Job
from fm.layout import StageFolder, Storage
from fm.request import TrainRequest
from fm.types import DataRef, ModelRef


def request(**values: Any) -> TrainRequest:
    return TrainRequest.build({"model": "fm/nano-llama", "train_data_path": "d.jsonl", "method": "full", **values})


def write_job(root: Path, **values: Any) -> StageFolder:
    """Writes the job of the first attempt of ``run-1``, which asks for `values`, below the storage root."""
    folder = Storage(root).run("run-1").attempt(1)
    Job(
        stage="train", run_id="run-1", run_name="one", attempt=1, request=request(**values),
        model=ModelRef(kind="preset", name="fm/nano-llama"), train_data=DataRef(path="d.jsonl", digest="", bytes=1),
        storage_root=str(root), started_at=datetime.now(UTC),
    ).write(folder)  # fmt: skip
    return folder
