"""What a stage of a run is to do, put together from the store and the run's folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from fm.errors import NotFound
from fm.job import Job, Stage
from fm.layout import Storage
from fm.store.store import RunStore
from fm.types import RunRecord


def make_job(
    store: RunStore,
    storage: Storage,
    run: RunRecord,
    stage: Stage,
    attempt: int,
    *,
    prepared: dict[str, Any] | None,
    now: datetime,
    devices: tuple[int, ...],
) -> Job:
    """The job of the stage that `run` begins `now`."""
    return Job(
        stage=stage,
        run_id=run.id,
        run_name=run.name,
        attempt=attempt,
        request=run.request,
        model=run.model,
        train_data=run.train_data,
        eval_data=run.eval_data,
        storage_root=str(storage.root),
        prepared=prepared,
        started_at=now,
        elapsed_seconds=run.running_seconds,
        devices=devices,
        resume_from=tuple(map(str, _checkpoint_folders(store, storage, run))) if stage == "train" else (),
    )


def _checkpoint_folders(store: RunStore, storage: Storage, run: RunRecord) -> list[Path]:
    """The checkpoints to choose from, whole or not: of the run's attempts, and of the runs that it resumes."""
    folders: list[Path] = []
    while True:
        for _, attempt in storage.run(run.id).attempts():
            folders += sorted(attempt.checkpoints.glob("step-*"), reverse=True)
        try:
            run = store.find(run.team, run.parent or "")
        except NotFound:  # it resumes none, or one that has been deleted with its checkpoints
            return folders
