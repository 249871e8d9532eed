"""PostgreSQL goes away and comes back: who works on it waits, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fm.errors import StoreError
from fm.lifecycle import Status
from fm.store.store import RunStore
from fm.types import Principal
from support.local import processes_of
from support.stores import fresh_database, new_run, stoppable_postgres, url_of
from support.waiting import until

ADA = Principal(user="ada")
PATIENCE = 120.0


@pytest.fixture
def postgres_to_stop() -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="fm-postgres-") as folder, stoppable_postgres(Path(folder) / "data") as it:
        yield it


def test_a_store_is_used_again_after_an_outage_with_no_more_than_one_error(postgres_to_stop: Any) -> None:
    store = RunStore(fresh_database(url_of(postgres_to_stop)))
    made = store.create(new_run(), "before", ADA)
    postgres_to_stop.stop()
    with pytest.raises(StoreError):
        store.find("local", made.id)
    postgres_to_stop.start()
    assert store.find("local", made.id) == made
    # Without a question in between, the connection is one that broke unseen: just now, or a while ago.
    for idle in (0.0, 1.2):
        postgres_to_stop.stop()
        postgres_to_stop.start()
        time.sleep(idle)
        if not idle:
            with suppress(StoreError):
                store.find("local", made.id)
        assert store.create(new_run(), f"after {idle}", ADA).status is Status.QUEUED
    store.close()


def test_a_permanent_agent_outlives_an_outage_of_its_store(postgres_to_stop: Any, tmp_path: Path) -> None:
    url = fresh_database(url_of(postgres_to_stop))
    store, log = RunStore(url), tmp_path / "agent.log"
    with log.open("wb") as output:
        agent = subprocess.Popen(
            [sys.executable, "-m", "fm.cli.main", "agent"], stderr=output, cwd=tmp_path,
            env={**os.environ, "FM_HOME": str(tmp_path / "fm"), "FM_STORE": url},
        )
    try:
        until(lambda: bool(store.agents()), "the agent announces itself", seconds=PATIENCE)
        postgres_to_stop.stop()
        again = "the next try is in"
        until(lambda: log.read_text().count(again) >= 2, "the agent tries again and again", seconds=PATIENCE)
        assert agent.poll() is None
        postgres_to_stop.start()
        run = store.create(new_run(), "after the outage", ADA)
        until(lambda: store.find("local", run.id).status is not Status.QUEUED, "a run is taken", seconds=PATIENCE)
        postgres_to_stop.stop()
        agent.terminate()
        assert agent.wait(PATIENCE) == 0
    finally:
        agent.kill()
        agent.wait()
        store.close()
        for process in processes_of(tmp_path):
            process.kill()
