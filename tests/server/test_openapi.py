"""The interface as its own OpenAPI describes it: random cases, right and wrong, as users of two teams."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import fm
from fm.backends.stored import StoreBackend
from fm.testing.serving import Served, serve
from fm_server.guard import PUBLIC, SCOPES
from support.fuzzing import fuzz
from support.server import ask


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A server of its own: what is tried here leaves things behind."""
    with pytest.MonkeyPatch.context() as patch, serve() as served:
        patch.setenv("FM_HOME", str(tmp_path_factory.mktemp("client")))
        yield served


def test_random_cases_find_no_fault_and_nothing_of_another_team(server: Served, tmp_path: Path) -> None:
    found = fuzz(server, tmp_path / "fuzz", examples=3, seed=1)
    assert found.cases > 1000
    assert found.failures == {}, found.output


def test_random_cases_find_a_leak_between_teams_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoped = StoreBackend.scoped
    monkeypatch.setattr(
        StoreBackend, "scoped",
        lambda self, who: scoped(self, who.model_copy(update={"team": who.team.replace("blue", "red")})),
    )  # fmt: skip
    with serve() as leaky:
        monkeypatch.setenv("FM_HOME", str(tmp_path / "client"))
        found = fuzz(leaky, tmp_path / "fuzz", examples=1, seed=1)
    assert "GET /v1/runs/{run}" in str(found.failures), found.output


def test_openapi_says_of_every_route_whether_it_needs_a_token(server: Served) -> None:
    described = ask(server, "GET", "/v1/openapi.json").json()
    told = {
        (method.upper(), path): operation["security"] == []
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }
    hidden = ("GET", "/v1/openapi.json")
    assert told == {route: scope is PUBLIC for route, scope in SCOPES.items() if route != hidden}
    assert described["info"]["version"] == fm.__version__


def test_openapi_shows_of_every_route_a_body_and_an_answer_that_hold(server: Served) -> None:
    described = ask(server, "GET", "/v1/openapi.json").json()
    shown = 0
    for path, operations in described["paths"].items():
        for operation in operations.values():
            parts = {"body": operation.get("requestBody", {})}
            parts |= {status: found for status, found in operation["responses"].items() if status.startswith("2")}
            for which, part in parts.items():
                content = part.get("content", {}).get("application/json")
                if content is None or path == "/healthz" or (path, which) == ("/v1/plan", "200"):
                    continue
                assert "example" in content, (path, which)
                schema = {**content["schema"], "components": described["components"]}
                Draft202012Validator(schema).validate(content["example"])
                shown += 1
    assert shown > 25
    body = described["paths"]["/v1/runs"]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = ask(server, "POST", "/v1/runs", json=body, headers={"Idempotency-Key": "example"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), "all but the data set is there"


def test_a_method_that_a_path_does_not_know_is_answered_with_those_that_it_knows(server: Served) -> None:
    answer = ask(server, "PATCH", "/v1/runs")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("moment", ["0.5", "1700000000", "yesterday", "2026-13-01T00:00:00Z"])
def test_a_moment_that_is_none_is_refused(server: Served, moment: str) -> None:
    assert ask(server, "GET", f"/v1/runs?before={moment}").status_code == 400
