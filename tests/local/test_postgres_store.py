"""A team's store: the local backend on a real PostgreSQL, with a real agent and a real training."""

from __future__ import annotations

from pathlib import Path

import psutil

import fm
from fm.lifecycle import Status
from support.data import many_pairs
from support.local import local_backend
from support.stores import fresh_database, postgres_server


def test_a_run_in_postgresql_trains_registers_and_goes_on_after_its_agent_was_killed(tmp_path: Path) -> None:
    data = many_pairs(tmp_path / "pairs.jsonl", 32)
    with (
        postgres_server(tmp_path / "postgres") as server,
        local_backend(tmp_path / "home", FM_STORE=fresh_database(server)) as backend,
    ):
        run = fm.create(
            model="fm/nano-llama",
            train_data_path=str(data),
            task_type="INSTRUCTION_FINETUNE",
            method="full",
            register_to="main.team.model",
            training_duration="20ba",
            backend=backend,
        )
        while not backend.store.agents():
            run.refresh()
        [agent] = backend.store.agents()
        psutil.Process(agent.pid).kill()
        assert run.wait(120).status is Status.COMPLETED
        assert run.registered_model == "main.team.model/1"
        assert [event.seq for event in run.events()] == list(range(1, len(run.get_events()) + 1))
        assert not (tmp_path / "home" / "ftctl.db").exists()
