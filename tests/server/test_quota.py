"""A team's quota of disk, as whoever sends data meets it."""

from __future__ import annotations

from typing import Any

import pytest

from fm.testing.serving import Served
from fm.types import Principal
from support.server import ask


@pytest.fixture
def small(server: Served, request: pytest.FixtureRequest) -> str:
    """A token of a team that may use a megabyte, and has nothing yet."""
    team = f"small-{len(request.node.name)}"
    token = server.token_for(team)
    server.kept.store.administration(Principal(user="root")).limit_team(team, max_disk=1_000_000)
    return token


def begin(server: Served, token: str, number: int, size: int) -> Any:
    announced = {"files": [{"name": "d.jsonl", "bytes": size}]}
    return ask(server, "POST", f"/v1/datasets/{number:064x}", token=token, json=announced)


def test_data_beyond_the_quota_is_refused_before_it_is_sent(server: Served, small: str) -> None:
    answer = begin(server, small, 1, 1_000_001)
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
    assert "remove runs" in answer.json()["hint"]
    assert begin(server, small, 1, 1_000_000).status_code == 200


def test_uploads_that_are_under_way_count_each_once(server: Served, small: str) -> None:
    assert begin(server, small, 2, 600_000).status_code == 200
    assert begin(server, small, 2, 600_000).status_code == 200
    assert begin(server, small, 3, 600_000).status_code == 507
    assert begin(server, server.token, 3, 600_000).status_code == 200
    assert begin(server, small, 4, 400_000).status_code == 200
