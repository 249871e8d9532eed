"""An empty run store at a clock that the test moves, and data for a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fm.clock import SimulatedClock
from fm.store.store import RunStore
from support.rows import chats
from support.stores import moment


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(moment())


@pytest.fixture
def store(store_url: str, clock: SimulatedClock) -> Iterator[RunStore]:
    store = RunStore(store_url, clock)
    yield store
    store.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats(tmp_path / "train.jsonl")
