"""What holds for every test: a home of its own, a clean environment, no socket but loopback."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Models of tests are so small that a second thread only waits: for two at work at once, trainings took thrice the
# processor time. What several threads do is asked where they are the question, in tests/local/test_trainer_lanes.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell ignores Ctrl-C for what it starts in the background, and so would every process that a test sends it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST_FIRST = (
    "local/test_preflight_verdicts.py", "local/test_trainer_sharding.py", "faults/test_preflight_faults.py",
    "faults/test_kills.py", "local/test_reference_scripts_for_real.py", "local/test_agents_elsewhere.py",
    "faults/test_budget.py", "faults/test_server_faults.py", "server/test_openapi.py", "local/test_trainer_resume.py",
    "local/test_plan_families.py", "faults/test_stall.py", "local/test_prepare_stage.py", "faults/test_large_data.py",
    "local/test_prepare_faults.py", "local/test_trainer_ranks.py", "server/test_team.py",
    "local/test_same_weights.py", "faults/test_no_sockets.py", "cluster/test_kills.py", "cluster/test_places.py",
)  # fmt: skip
"""Modules that take half a minute and more, however few tests they have: begun last, they would be waited for by a
worker that has nothing left to do. With `--no-loadscope-reorder`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(place)))


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME and FM_HOME are empty folders, and no `FM_*` or `HF_*` setting of the machine reaches the test."""
    for name in list(os.environ):
        if name.startswith(("FM_", "HF_", "MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FM_HOME", str(home / "fm"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return home


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL server."""
    from support.stores import postgres_server

    # Not below pytest's folder, which each new session closes to the user under whom root's PostgreSQL runs.
    with tempfile.TemporaryDirectory(prefix="fm-postgres-") as folder, postgres_server(Path(folder) / "data") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database in which there is nothing yet, on SQLite and on PostgreSQL."""
    from support.stores import empty_database

    return empty_database(request, tmp_path / "store.db")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # PostgreSQL is reached through a Unix socket; everything else stays on this machine too.
    pytest_socket = sys.modules.get("pytest_socket")
    if pytest_socket is not None:
        pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
