"""Agents on other machines, which share a database and a file store with the server, and no folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.backends.stored import StoreBackend
from fm.lifecycle import EventType, Status
from support.data import many_pairs
from support.elsewhere import OTHER_USER, AgentElsewhere, machines
from support.files import digests, s3_server
from support.local import local_backend
from support.stores import fresh_database, postgres_server

PATIENCE = 240.0
ALONE = {"FM_STORE": "", "FM_FILES": "", "FM_AGENT": "auto"}


class Team:
    """A server's backend, a database and a file store; agents join by `agent`."""

    def __init__(self, folder: Path, backend: StoreBackend, database: str, files: str) -> None:
        self.folder = folder
        self.backend = backend
        self.database = database
        self.files = files

    def agent(self, name: str) -> AgentElsewhere:
        home = self.folder / name
        home.mkdir()
        return AgentElsewhere(home, self.database, self.files)

    def create(self, **parameters: Any) -> fm.Run:
        data = many_pairs(self.folder / "server" / "pairs.jsonl", 48)
        values: dict[str, Any] = {
            "model": "fm/nano-llama", "train_data_path": str(data), "task_type": "INSTRUCTION_FINETUNE",
            "method": "full", "training_duration": "12ba", "batch_size": 8, "save_interval": "4ba",
            "learning_rate": 1e-3, "register_to": "main.elsewhere.model",
        }
        return fm.create(**{**values, **parameters}, backend=self.backend)

    def until(self, condition: Callable[[], bool], *agents: AgentElsewhere) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "\n".join(agent.log for agent in agents)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with machines() as folder, postgres_server(folder / "postgres") as server:
        (folder / "postgres").chmod(0o755)
        yield server


@pytest.fixture(params=["folder", "s3"])
def team(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Team]:
    with ExitStack() as stack:
        folder = stack.enter_context(machines())
        if request.param == "s3":
            files = stack.enter_context(s3_server(tmp_path))
        else:
            files = str(folder / "files")
            Path(files).mkdir()
            shutil.chown(files, group=OTHER_USER)
            Path(files).chmod(0o2770)
        url = fresh_database(database)
        settings = {"FM_STORE": url, "FM_FILES": files, "FM_AGENT": "off"}
        backend = stack.enter_context(local_backend(folder / "server", **settings))
        yield Team(folder, backend, url, files)


def test_an_agent_of_another_user_trains_on_uploaded_data_and_its_files_have_equal_digests(
    team: Team, tmp_path: Path
) -> None:
    agent = team.agent("gpu")
    run = team.create(eval_prompts=["what is 2 plus 2?\n"])
    team.until(lambda: run.refresh().status.is_terminal(), agent)
    assert run.status is Status.COMPLETED, run.reason + agent.log
    assert not (agent.is_another_user and agent.can_read(team.folder / "server"))

    assert "attempt" in "".join(event.message for event in run.get_events())
    assert run.logs() is not None and len(run.metrics("loss/train/total")) == 12
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

    with local_backend(tmp_path / "one-machine", **ALONE) as alone:
        same, weights = on_one_machine(alone, run), "model.safetensors"
        assert alone.models.get(same.registered_model or "").files[weights] == version.files[weights]

    tuned = team.create(model="main.elsewhere.model", method="lora", register_to="main.elsewhere.tuned")
    team.until(lambda: tuned.refresh().status.is_terminal(), agent)
    assert tuned.status is Status.COMPLETED, tuned.reason + agent.log
    adapter = team.backend.models.get("main.elsewhere.tuned")
    assert adapter.base is not None and adapter.base.name == version.ref
    agent.kill()


def on_one_machine(alone: StoreBackend, run: fm.Run) -> fm.Run:
    """The same run on a single machine, without any file store."""
    values = run.record.request.model_dump()
    same = {name: values[name] for name in ("model", "train_data_path", "method", "training_duration", "batch_size")}
    same |= {name: values[name] for name in ("save_interval", "learning_rate", "register_to")}
    return fm.create(**same, task_type="INSTRUCTION_FINETUNE", backend=alone).wait(PATIENCE)


def test_a_second_machine_goes_on_from_the_last_checkpoint_of_one_that_is_lost(team: Team, tmp_path: Path) -> None:
    with local_backend(tmp_path / "one-machine", **ALONE) as alone:
        run = team.create(training_duration="300ba", save_interval="20ba")
        expected = alone.models.get(on_one_machine(alone, run).registered_model or "").files["model.safetensors"]
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
