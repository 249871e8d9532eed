"""A team's server: no agent of its own, a file store apart, and an agent elsewhere that shares nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import fm
from fm.files import digest_file
from fm.remote.opening import open_remote
from support.data import many_pairs
from support.ftctl_server import server_process


def test_an_agent_elsewhere_trains_on_what_was_sent_to_the_server(tmp_path: Path, store_url: str) -> None:
    files = tmp_path / "files"
    shared = ("--database", store_url, "--files", str(files))
    with server_process(tmp_path / "server", "--no-agent", *shared) as server:
        remote = open_remote(server.url)
        home = {**os.environ, "FM_HOME": str(tmp_path / "gpu"), "OMP_NUM_THREADS": "1"}
        agent = subprocess.Popen([sys.executable, "-m", "fm.cli.main", "agent", *shared], env=home)
        try:
            run = fm.create(
                "fm/nano-llama", many_pairs(tmp_path / "pairs.jsonl", 32), task_type="INSTRUCTION_FINETUNE",
                method="full", training_duration="3ba", register_to="main.team.model", backend=remote,
            ).wait(120)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(60)
        version = remote.models.get(run.registered_model)
        folder = remote.models.open(version.ref)
        assert version.files and version.files == {name: digest_file(folder / name) for name in version.files}
        assert str(tmp_path) not in str([event.message for event in run.get_events()])
        assert run.checkpoints() and "step 3" in run.logs() + str(run.get_events())
