"""Who gets in: every route with no, bad, expired and revoked tokens, without its scope, and with another team's ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

import fm
from fm.backends.fake import open_fake
from fm.testing.serving import Served
from fm.types import Principal
from fm_server.app import make_app
from fm_server.guard import PUBLIC, SCOPES, GuardedRoute
from support.server import ask, ended_run

GUARDED = sorted(route for route, scope in SCOPES.items() if scope is not PUBLIC)


def some(path: str) -> str:
    """`path` with something in the place of each parameter."""
    return re.sub(r"\{(\w+)\}", lambda match: "0" * 64 if match[1] == "digest" else "a.jsonl", path)


def template(path: str) -> str:
    """The path of `SCOPES` that `path` is an instance of."""
    bare = path.partition("?")[0]
    known = (route for _, route in SCOPES if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), bare))
    return min(known, key=lambda route: route.count("{"))


def all_routes() -> list[Any]:
    return list(make_app(open_fake()).routes)


def test_every_route_is_guarded_and_in_the_table_and_the_table_has_no_other() -> None:
    routes = all_routes()
    assert all(isinstance(route, GuardedRoute) for route in routes)
    assert {(method, route.path) for route in routes for method in route.methods} == set(SCOPES)


def test_only_health_is_public() -> None:
    assert [route for route, scope in SCOPES.items() if scope is PUBLIC] == [("GET", "/healthz")]


def test_a_route_that_is_not_in_the_table_cannot_be_made() -> None:
    app = make_app(open_fake())
    with pytest.raises(LookupError, match="/v1/secrets"):
        app.get("/v1/secrets")(lambda: "all of them")
    assert not [route for route in app.routes if isinstance(route, APIRoute) and route.path == "/v1/secrets"]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_no_route_answers_without_a_token_that_holds(server: Served, method: str, path: str) -> None:
    administration = server.kept.store.administration(Principal(user="root"))
    revoked = server.token_for("local")
    administration.revoke_token(revoked.split("_")[1])
    expired = administration.make_token("local", "tester", days=-1).text
    unknown = ("", "x", "ftc_0000000000_" + "0" * 64, server.token[:-1] + "z", server.token.upper())
    for token in (*unknown, expired, revoked):
        answer = ask(server, method, some(path), token=token)
        assert answer.status_code == 401, (token, answer.text)
        assert answer.json()["code"] == "unauthorised"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_token_reaches_only_what_its_scopes_allow(server: Served, method: str, path: str) -> None:
    needed = SCOPES[(method, path)]
    for scope in ("read", "submit", "admin"):
        status = ask(server, method, some(path), token=server.token_for("local", scope)).status_code
        assert (status == 403) == (scope != needed), (scope, status)


def test_health_needs_no_token_and_tells_nothing(server: Served) -> None:
    assert ask(server, "GET", "/healthz", token="").json() == {"status": "ok"}


def test_another_teams_things_are_missing_on_every_route(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path, training_duration="6ba")
    eve = server.token_for("others")
    digest, saved = run.record.train_data.digest, run.checkpoints()[-1]
    submission = {
        "request": {"model": "fm/nano-llama", "train_data_path": "x.jsonl", "method": "full"},
        "train_data": {"digest": digest, "bytes": 1},
    }
    weights = {**submission["request"], "custom_weights_path": f"{run.id}/1/{saved.step}"}
    asked: list[tuple[str, str, Any]] = [
        *(("GET", f"/v1/runs/{ref}{what}", None) for ref in (run.id, run.name, run.id[:-2])
          for what in ("", "/events", "/stream", "/metrics", "/logs", "/checkpoints")),
        ("DELETE", f"/v1/runs/{run.id}", None),
        ("POST", f"/v1/runs/{run.id}/cancel", {}),
        ("POST", f"/v1/runs/{run.id}/resume", None),
        ("GET", f"/v1/runs?cursor={run.id}", None),
        *(("GET", f"/v1/models/version?ref=main.qa.bot{which}", None) for which in ("", "/1")),
        ("GET", "/v1/models/file?ref=main.qa.bot&name=config.json", None),
        ("DELETE", "/v1/models/version?ref=main.qa.bot", None),
        ("POST", "/v1/models/alias", {"ref": "main.qa.bot", "alias": "prod"}),
        *(("GET", f"/v1/datasets/{digest}{what}", None) for what in ("", "/files", "/file?name=pairs.jsonl")),
        ("DELETE", f"/v1/datasets/{digest}", None),
        ("POST", f"/v1/datasets/{digest}/finish", {"name": "mine"}),
        ("PUT", f"/v1/datasets/{digest}/parts/0", None),
        ("POST", "/v1/runs", submission),
        ("POST", "/v1/plan", submission),
        ("POST", "/v1/validate", {"request": {**submission["request"], "model": "main.qa.bot", "method": "lora"}}),
        ("POST", "/v1/validate", {"request": weights}),
        ("GET", f"/v1/runs/{run.id}/checkpoints/{saved.step}/file?name={min(saved.files)}", None),
    ]
    of_things = {route for route in SCOPES if "{" in route[1] or route[1].startswith("/v1/models/")}
    of_things -= {("POST", "/v1/datasets/{digest}")}  # begins an upload of one's own
    assert of_things <= {(method, template(path)) for method, path, _ in asked}
    for method, path, body in asked:
        answer = ask(server, method, path, token=eve, json=body, headers={"Idempotency-Key": "eve"})
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.json()["code"] == "not_found"
        # What is there is answered to its team, so that the 404 is no accident of the path.
        if method == "GET" and "/stream" not in path:
            assert ask(server, method, path).status_code == 200, path
    assert ask(server, "GET", "/v1/runs", token=eve).json() == {"runs": [], "next_cursor": None}
    assert ask(server, "GET", "/v1/models", token=eve).json() == {"models": []}


def test_an_idempotency_key_of_another_team_is_another_key(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path, idempotency_key="shared")
    with fm.backend(server.url, token=server.token_for("others")):
        other = fm.create("fm/nano-llama", tmp_path / "pairs.jsonl", task_type="INSTRUCTION_FINETUNE", method="full",
                          idempotency_key="shared")
    assert other.id != run.id
