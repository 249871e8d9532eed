"""Faults of a server and its queue in small numbers, on SQLite and PostgreSQL; `make prove` makes hundreds of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import server_faults as faults
from support.stores import fresh_database


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[None]:
    with faults.home_of(tmp_path):
        yield


def test_creates_whose_replies_are_lost_make_one_run_each(tmp_path: Path, store_url: str) -> None:
    found = faults.creates(tmp_path, store_url, count=16, threads=8, dropped=0.4)
    assert found["holds"], found
    assert found["replies_of_creates_lost"] > 0


def test_events_have_no_gap_and_no_repeat_though_the_server_is_killed(tmp_path: Path, store_url: str) -> None:
    found = faults.follows(tmp_path, store_url, events=300, kills=3)
    assert found["holds"], found


def test_every_job_ends_once_though_workers_are_killed(tmp_path: Path, store_url: str) -> None:
    found = faults.kills_of_workers(tmp_path, store_url, jobs=20, kills=3, workers=3)
    assert found["holds"], found


def test_a_worker_that_wakes_after_its_lease_can_write_nothing(tmp_path: Path, postgres: str) -> None:
    found = faults.sleepers(tmp_path, fresh_database(postgres), tries=5)
    assert found["holds"], found
