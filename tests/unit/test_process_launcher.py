"""What the process launcher gives to the processes that it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import fm
from fm.job import Job
from fm.launching import Life
from fm.layout import StageFolder
from fm_local.launcher import ProcessLauncher
from support.rows import chats
from support.stores import moment
from support.waiting import until

CANARY = "canary-5d1f"


@pytest.mark.usefixtures("fm_fake")
def test_a_trainers_environment_holds_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "FM_TOKEN": f"ftc_{CANARY}", "FM_STORE": f"postgresql+psycopg://me:{CANARY}@db/x",
        "FM_FILES": f"s3://{CANARY}@bucket", "FM_RAY_ADDRESS": f"http://me:{CANARY}@head:8265",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OF_THE_USER", "stays")
    shows = tmp_path / "python"
    shows.write_text("#!/bin/sh\nexec env\n")
    shows.chmod(0o700)
    record = fm.create("org/m", str(chats(tmp_path / "train.jsonl")), "main.support.bot", backend="fake").record
    record = record.model_copy(update={"caller": record.caller.model_copy(update={"python": str(shows)})})
    folder = StageFolder(tmp_path / "stage")
    Job(
        stage="check", run_id=record.id, run_name=record.name, attempt=0, request=record.request, model=record.model,
        train_data=record.train_data, storage_root=str(tmp_path), started_at=moment(),
    ).write(folder)
    launcher = ProcessLauncher()
    handle = launcher.start(record, folder, "check")
    until(lambda: launcher.poll(handle).life is Life.EXITED, seconds=20)
    environment = folder.log.read_text()
    assert "OF_THE_USER=stays" in environment
    assert CANARY not in environment
