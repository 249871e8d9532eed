"""Agents on other machines, which share a database and a file store with the server, and no folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.backends.base import Backend
from fm.lifecycle import EventType, Status
from fm.remote.backend import RemoteBackend
from fm.remote.opening import open_remote
from support.data import many_pairs
from support.elsewhere import OTHER_USER, PRINTED, TRAINER_THREADS, AgentElsewhere, closed, machines
from support.files import digests, s3_server
from support.ftctl_server import server_process
from support.local import local_backend
from support.stores import fresh_database, postgres_server

PATIENCE = 240.0
ALONE = {"FM_STORE": "", "FM_FILES": "", "FM_AGENT": "auto", "OMP_NUM_THREADS": TRAINER_THREADS}
"""As many threads as elsewhere: how a step is cut into pieces, and so its last bits, depends on their number."""


class Team:
    """A server in `home`, and what its agents reach of it: a database and a file store. They join by `agent`."""

    def __init__(self, folder: Path, home: Path, backend: RemoteBackend, database: str, files: str) -> None:
        self.folder = folder
        self.home = home
        self.backend = backend
        self.database = database
        self.files = files

    def agent(self, name: str) -> AgentElsewhere:
        home = self.folder / name
        home.mkdir()
        return AgentElsewhere(home, self.database, self.files)

    def until(self, condition: Callable[[], bool], *agents: AgentElsewhere) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            log = "\n".join(agent.log for agent in agents)
            assert time.monotonic() < deadline and all(agent.process.poll() is None for agent in agents), log
            time.sleep(0.1)


def create(backend: Backend, folder: Path, **parameters: Any) -> fm.Run:
    """A run of twelve steps on a file of `folder`."""
    values: dict[str, Any] = {
        "model": "fm/nano-llama", "train_data_path": str(many_pairs(folder / "pairs.jsonl", 48)),
        "task_type": "INSTRUCTION_FINETUNE", "method": "full", "training_duration": "12ba", "batch_size": 8,
        "save_interval": "4ba", "learning_rate": 1e-3, "register_to": "main.elsewhere.model",
    }
    return fm.create(**{**values, **parameters}, backend=backend)


def weights_on_one_machine(folder: Path, **parameters: Any) -> str:
    """The digest of the weights that the same run has on a single machine, without server and file store."""
    with local_backend(folder / "one-machine", **ALONE) as alone:
        run = create(alone, folder, **parameters).wait(PATIENCE)
        return alone.models.get(run.registered_model or "").files["model.safetensors"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with machines() as folder, postgres_server(folder / "postgres") as server:
        (folder / "postgres").chmod(0o755)
        yield server


@pytest.fixture(params=["folder", "s3"])
def team(
    request: pytest.FixtureRequest, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Team]:
    with ExitStack() as stack:
        folder = stack.enter_context(machines())
        if request.param == "s3":
            files = stack.enter_context(s3_server(tmp_path))
        else:
            files = str(folder / "files")
            Path(files).mkdir()
            if os.geteuid() == 0:
                shutil.chown(files, group=OTHER_USER)
            Path(files).chmod(0o2770)
        url = fresh_database(database)
        monkeypatch.setenv("FM_FILES", files)
        server = stack.enter_context(server_process(folder / "server", "--no-agent", "--database", url))
        backend = open_remote(server.url)
        yield Team(folder, folder / "server", backend, url, files)
        backend.close()


def test_an_agent_that_cannot_enter_the_servers_folder_trains_on_uploaded_data_and_digests_are_equal(
    team: Team, tmp_path: Path
) -> None:
    run = create(team.backend, tmp_path, eval_prompts=["what is 2 plus 2?\n"])
    with closed(team.home):
        agent = team.agent("gpu")
        assert not agent.can_read(team.home)
        team.until(lambda: run.refresh().status.is_terminal(), agent)
    assert run.status is Status.COMPLETED, run.reason + agent.log

    assert "attempt" in "".join(event.message for event in run.get_events())
    assert PRINTED in run.logs() and len(run.metrics("loss/train/total")) == 12
    version = team.backend.models.get("main.elsewhere.model")
    folder = team.backend.models.open("main.elsewhere.model")
    found = digests(folder)
    assert {name: found[name] for name in version.files} == version.files
    with team.backend.models.read(version.ref, "config.json", offset=2) as file:
        assert file.read() == (folder / "config.json").read_bytes()[2:]

    checkpoints = run.checkpoints()
    assert [checkpoint.step for checkpoint in checkpoints] == [8, 12]
    for checkpoint in checkpoints:
        found = digests(team.backend.runs.open_checkpoint(run.id, checkpoint.step))
        assert {name: found[name] for name in checkpoint.files} == checkpoint.files
    assert weights_on_one_machine(tmp_path) == version.files["model.safetensors"]

    tuned = create(
        team.backend, tmp_path, model="main.elsewhere.model", method="lora", register_to="main.elsewhere.tuned"
    )
    team.until(lambda: tuned.refresh().status.is_terminal(), agent)
    assert tuned.status is Status.COMPLETED, tuned.reason + agent.log
    adapter = team.backend.models.get("main.elsewhere.tuned")
    assert adapter.base is not None and adapter.base.name == version.ref
    agent.kill()


@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_a_second_machine_goes_on_from_the_last_checkpoint_of_one_that_is_lost(team: Team, tmp_path: Path) -> None:
    long = {"training_duration": "300ba", "save_interval": "20ba"}
    expected = weights_on_one_machine(tmp_path, **long)
    run = create(team.backend, tmp_path, **long)
    first = team.agent("first")
    team.until(lambda: len(run.checkpoints()) > 0, first)
    first.kill()
    saved = run.checkpoints()[-1].step
    assert run.refresh().status is not Status.COMPLETED, "it was over before the machine was lost"
    shutil.rmtree(first.home)
    second = team.agent("second")
    team.until(lambda: run.refresh().status.is_terminal(), second)
    assert run.status is Status.COMPLETED, run.reason + second.log
    begun = [event.data["step"] for event in run.get_events() if event.type is EventType.TRAIN_STARTED]
    assert begun[0] == 0 and begun[-1] >= saved > 0
    assert team.backend.models.get("main.elsewhere.model").files["model.safetensors"] == expected
    second.kill()
