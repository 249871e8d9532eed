"""Attacks that worked on other servers of this field, in essence, tried on this one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from fm.testing.serving import Served
from fm.types import Principal
from fm.uploads import Digester
from fm_server.guard import PUBLIC, SCOPES
from support.server import ask, ended_run

BODY: dict[str, Any] = {
    "request": {"model": "fm/nano-llama", "train_data_path": "x.jsonl", "method": "full"},
    "train_data": {"digest": "0" * 64, "bytes": 1},
}
OUTSIDE = (
    "file:///etc/passwd", "FILE:/etc/passwd", "file://localhost/etc/passwd", "//etc/passwd", "..\\..\\etc\\passwd",
    "models:/../../etc/passwd", "http://127.0.0.1/x#/../../etc", "/etc/passwd", "~root", "../../../etc/passwd", "a\0b",
)
COMMANDS = (
    "; touch OWNED", "$(touch OWNED)", "`touch OWNED`", "| touch OWNED", "--help\n touch OWNED", "-c touch OWNED",
)


def raw(server: Served, method: str, path: str, token: str) -> httpx.Response:
    """A request for `path` as it stands: no client tidies it up."""
    import http.client

    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest(method, path, skip_accept_encoding=True)
    if token:
        connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    answer = connection.getresponse()
    found = httpx.Response(answer.status, content=answer.read())
    connection.close()
    return found


@pytest.mark.parametrize("place", OUTSIDE)
def test_no_field_leads_to_a_file_of_the_server(server: Served, place: str) -> None:
    """CVE-2023-1177, CVE-2023-2780, CVE-2025-11201: a model's source or name that is a path."""
    for field in ("model", "custom_weights_path", "register_to", "name"):
        body = {**BODY, "request": {**BODY["request"], field: place}}
        for path in ("/v1/runs", "/v1/validate", "/v1/plan"):
            asked = {key: value for key, value in body.items() if key != "train_data" or path != "/v1/validate"}
            answer = ask(server, "POST", path, json=asked, headers={"Idempotency-Key": "attack"})
            assert answer.status_code in (400, 404, 422, 501), (path, field, answer.text)
            assert "root:" not in answer.text
    assert ask(server, "GET", "/v1/models/version", params={"ref": place}).status_code in (400, 404)


@pytest.mark.parametrize(
    "hidden",
    ["%2e%2e%2f", "%252e%252e%252f", "..%5c", "..;/", "%2e%2e;x=1/", ";/../", "%c0%ae%c0%ae/", "....//", "%00"],
)
def test_no_encoding_of_a_path_leads_out_of_its_route(server: Served, tmp_path: Path, hidden: str) -> None:
    """CVE-2024-1560, CVE-2024-1593: traversal that is encoded twice, or hidden behind a semicolon."""
    run = ended_run(server, tmp_path)
    way = hidden * 6 + "etc/passwd"
    for path in (f"/v1/runs/{way}", f"/v1/runs/{run.id}/{way}", f"/v1/runs/{run.id}/checkpoints/5/file?name={way}",
                 f"/v1/models/file?ref=main.qa.bot&name={way}", f"/v1/datasets/{way}"):
        for method in ("GET", "DELETE"):
            answer = raw(server, method, path, server.token)
            assert answer.status_code in (400, 404, 405), (method, path, answer.text)
            assert "root:" not in answer.text
    assert run.refresh().status.is_terminal()


def test_no_writing_of_a_route_passes_by_the_guard(server: Served) -> None:
    """CVE-2023-48022, CVE-2026-0545, CVE-2026-2652: routes, those of jobs above all, that no authentication covers."""
    for (_, path), scope in SCOPES.items():
        if scope is PUBLIC:
            continue
        known = path.replace("{run}", "run-000000000000").replace("{digest}", "0" * 64)
        known = known.replace("{step}", "1").replace("{offset}", "0")
        ways = (known + "/", "/" + known, known.upper(), known.replace("/v1", "/v1/.", 1), known + "%2f", known + ";x",
                "/healthz/.." + known, "/healthz?/" + known, "/healthz;" + known, known + "?token=" + server.token)
        for written in (known, *ways):
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"):
                answer = raw(server, method, written, "")
                allowed = written.startswith("/healthz?") and method == "GET"
                assert answer.status_code in ((200, 400) if allowed else (400, 401, 404, 405)), (method, written)


@pytest.mark.parametrize("field", ["entrypoint", "runtime_env", "command", "chat_template", "chat_template_kwargs",
                                   "python", "env", "cwd", "trust_remote_code", "output_dir"])
def test_no_client_says_what_is_executed(server: Served, field: str) -> None:
    """CVE-2023-48022, CVE-2025-62426, CVE-2026-58116: a job's command, environment, template or leave to run a model's
    code from a request."""
    for place in ((), ("request",), ("caller",)):
        body: dict[str, Any] = {**BODY, "caller": {}}
        inner = body
        for name in place:
            inner[name] = dict(inner[name])
            inner = inner[name]
        inner[field] = "touch OWNED"
        answer = ask(server, "POST", "/v1/runs", json=body, headers={"Idempotency-Key": "attack"})
        # A caller's folder is something to be recorded, and nothing is run in it.
        recorded = place == ("caller",) and field == "cwd"
        assert answer.status_code == (404 if recorded else 400), answer.text


@pytest.mark.parametrize("command", COMMANDS)
def test_no_text_becomes_a_command(
    server: Served, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2023-6019, CVE-2024-52803: a shell that reads a parameter."""
    monkeypatch.chdir(tmp_path)
    for field in ("model", "name", "register_to", "training_duration", "precision", "experiment_path"):
        body = {**BODY, "request": {**BODY["request"], field: command}}
        answer = ask(server, "POST", "/v1/runs", json=body, headers={"Idempotency-Key": "attack"})
        assert answer.status_code in (400, 404, 422), answer.text
    assert ask(server, "POST", "/v1/validate", json={**BODY, "launcher": command}).status_code == 400
    assert not list(tmp_path.rglob("OWNED*"))


@pytest.mark.parametrize("agent", ["Mozilla/5.0", "curl/8", "mozilla/5.0", ""])
def test_a_page_in_a_browser_reaches_nothing_whatever_it_calls_itself(server: Served, agent: str) -> None:
    """CVE-2025-62593: a rebound name, and a check of the user agent alone."""
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"},
                    {"Origin": "null"}):
        sent = {"User-Agent": agent, "Content-Type": "text/plain", **headers}
        assert ask(server, "POST", "/v1/runs", content=b"{}", headers=sent).status_code == 403


def test_what_somebody_wrote_is_never_a_page(server: Served, tmp_path: Path) -> None:
    """CVE-2024-27132: stored text that a browser executes."""
    script = "<script>alert(1)</script>"
    run = ended_run(server, tmp_path, tags={"note": script}, experiment_path=f"/{script}")
    for path in ("", "/events", "/metrics", "/logs", "/checkpoints"):
        answer = ask(server, "GET", f"/v1/runs/{run.id}{path}")
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert ask(server, "GET", "/v1/<script>").headers["content-type"] == "application/problem+json"


def test_a_form_with_files_is_not_unpacked(server: Served, tmp_path: Path) -> None:
    """CVE-2026-24486: a file's name in a form that leads out of the folder for uploads."""
    files = {"file": ("../../OWNED", b"x")}
    for path in ("/v1/runs", f"/v1/datasets/{'0' * 64}"):
        answer = ask(server, "POST", path, files=files, headers={"Idempotency-Key": "attack"})
        assert answer.status_code == 400, answer.text
    assert not list(server.kept.storage.root.parent.glob("OWNED*")) and not list(tmp_path.rglob("OWNED*"))


def test_an_upload_that_is_under_way_takes_nothing_from_others(server: Served) -> None:
    """CVE-2026-2651: parts of an upload that whoever knows its name adds to, ends or reads."""
    data = b'{"prompt":"p","response":"r"}\n'
    digester = Digester()
    digester.begin("d.jsonl", len(data))
    digester.feed(data)
    way = f"/v1/datasets/{digester.hexdigest()}"
    announced = {"files": [{"name": "d.jsonl", "bytes": len(data)}]}
    assert ask(server, "POST", way, json=announced).json() == {"bytes": 0}
    assert ask(server, "PUT", f"{way}/parts/0", content=data[:10]).json() == {"bytes": 10}
    reader, eve = server.token_for("local", "read"), server.token_for("others")
    for token, status in (("", 401), (reader, 403), (eve, 404)):
        for method, path, sent in (
            ("PUT", f"{way}/parts/10", {"content": b"x" * (len(data) - 10)}),
            ("POST", f"{way}/finish", {"json": {"name": "d"}}),
            ("DELETE", way, {}),
        ):
            assert ask(server, method, path, token=token, **sent).status_code == status, (method, path, token)
    # One of another team who begins the same begins at nothing, and what is hers does not mix with it.
    assert ask(server, "POST", way, token=eve, json=announced).json() == {"bytes": 0}
    assert ask(server, "PUT", f"{way}/parts/0", token=eve, content=b"x" * len(data)).status_code == 200
    assert ask(server, "POST", f"{way}/finish", token=eve, json={"name": "d"}).json()["code"] == "data_changed"
    assert ask(server, "POST", way, json=announced).json() == {"bytes": 10}
    assert ask(server, "PUT", f"{way}/parts/10", content=data[10:]).json() == {"bytes": len(data)}
    assert ask(server, "POST", f"{way}/finish", json={"name": "d"}).status_code == 200


def test_many_ranges_cost_nothing(server: Served, tmp_path: Path) -> None:
    """CVE-2025-62727: ranges that take quadratic time to merge."""
    ended_run(server, tmp_path)
    began = time.monotonic()
    for count in (2, 20, 8000):
        ranges = "bytes=" + ",".join(f"{number}-{number}" for number in range(count))
        answer = ask(server, "GET", "/v1/models/file?ref=main.qa.bot&name=config.json", headers={"Range": ranges})
        assert answer.status_code in (200, 400, 416, 431), answer.text
    assert time.monotonic() - began < 5


def test_a_tokens_secret_is_compared_in_constant_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2025-59425: a comparison that ends at the first wrong character tells how many were right."""
    import hmac

    compared: list[int] = []
    real = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append(len(one))
        return real(one, other)

    monkeypatch.setattr("hmac.compare_digest", compare)
    made = server.kept.store.administration(Principal(user="root")).make_token("local", "tester").text
    assert ask(server, "GET", "/v1", token=made[:-1] + ("0" if made[-1] != "0" else "1")).status_code == 401
    assert compared and min(compared) >= 32
