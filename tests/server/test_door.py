"""What is turned away before anything looks at it, and what never leaves."""

from __future__ import annotations

import json
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import fm
from fm.testing.serving import Served
from support.server import ask, ended_run

SUBMISSION: dict[str, Any] = {
    "request": {"model": "fm/nano-llama", "train_data_path": "x.jsonl", "method": "full"},
    "train_data": {"digest": "0" * 64, "bytes": 1},
}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8080", "", "[::1"])
def test_a_name_that_is_not_the_servers_is_refused(server: Served, host: str) -> None:
    assert ask(server, "GET", "/healthz", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1.evil.example"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)
def test_another_sites_requests_are_refused(server: Served, headers: dict[str, str]) -> None:
    assert ask(server, "GET", "/v1/runs", headers=headers).status_code == 403


def test_too_large_a_body_is_refused_by_its_announced_length_and_by_its_real_one(server: Served) -> None:
    assert ask(server, "POST", "/v1/runs", content=b" " * (1 << 20) + b"{}").status_code == 413
    chunks = (b" " * 65536 for _ in range(64))  # sent in chunks, without a length
    assert ask(server, "POST", "/v1/runs", content=chunks, headers={"Idempotency-Key": "k"}).status_code == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 400, "abc"])
def test_a_length_that_is_none_is_refused(server: Served, length: str) -> None:
    where = urlsplit(server.url)
    head = f"POST /v1/runs HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {server.token}\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n{{}}".encode())
        assert connection.recv(1000).split()[1] in (b"400", b"413")


@pytest.mark.parametrize("body", [b"[" * 10_000, b'{"request":' * 10_000, b"\xff\xfe", b"{", b"null", b"[]", b'"x"'])
def test_a_body_that_is_no_submission_is_refused(server: Served, body: bytes) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    answer = ask(server, "POST", "/v1/runs", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_compressed_bodies_are_not_unpacked(server: Served) -> None:
    assert ask(server, "POST", "/v1/runs", content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 400


@pytest.mark.parametrize("place", [(), ("request",), ("train_data",), ("caller",), ("request", "lora")])
@pytest.mark.parametrize("field", ["team", "status", "attempt", "owner", "path", "python", "env"])
def test_a_field_that_no_client_may_set_is_refused(server: Served, place: tuple[str, ...], field: str) -> None:
    body = json.loads(json.dumps(SUBMISSION))
    part = body
    for name in place:
        part = part.setdefault(name, {})
    part[field] = "x"
    answer = ask(server, "POST", "/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (400, "request_error")
    assert field in answer.json()["detail"]


def test_a_field_of_a_newer_client_is_named_with_the_servers_version(server: Served) -> None:
    body = {**SUBMISSION, "request": {**SUBMISSION["request"], "brand_new": 1}}
    found = ask(server, "POST", "/v1/runs", json=body, headers={"Idempotency-Key": "k"}).json()
    assert "brand_new" in found["detail"] and fm.__version__ in found["detail"]
    assert "upgrade the server" in found["hint"]


def test_an_unknown_query_parameter_is_refused(server: Served) -> None:
    assert ask(server, "GET", "/v1/runs?team=others").status_code == 400


@pytest.mark.parametrize(
    "model", ["/etc", "./x", "../x", "~", "~root/x", ".", "..", "a/../../etc", "server_stub/fm_server"]
)
def test_a_folder_of_the_server_is_no_model(server: Served, model: str) -> None:
    body = {"request": {**SUBMISSION["request"], "model": model}}
    answer = ask(server, "POST", "/v1/validate", json=body)
    # What could be a hub's name is taken for one, whatever folders there are.
    assert answer.status_code in (400, 404) or answer.json()["model"]["kind"] == "hub"
    assert "could be a folder" not in answer.text


@pytest.mark.parametrize(
    "weights",
    ["/etc/passwd", "runs/x", "../x", "run-000000000000/../1", "run-000000000000/1/1/../..", "%2e%2e/1/1", "\0"],
)
def test_a_path_of_the_server_is_no_checkpoint(server: Served, weights: str) -> None:
    body = {"request": {**SUBMISSION["request"], "custom_weights_path": weights}}
    assert ask(server, "POST", "/v1/validate", json=body).status_code in (400, 404)


@pytest.mark.parametrize(
    "name", ["../../x.jsonl", "..", "..\\x.jsonl", "x\0.jsonl", "/etc/passwd", "a/b.jsonl", "", "x" * 300]
)
def test_a_data_files_name_is_no_path(server: Served, name: str) -> None:
    answer = ask(server, "POST", f"/v1/datasets/{'0' * 64}", json={"files": [[name, 2]]})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("step", ["-1", "1e3", "..", "%2e%2e"])
@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", ""])
def test_a_checkpoints_file_is_no_path(server: Served, step: str, name: str) -> None:
    answer = ask(server, "GET", f"/v1/runs/run-000000000000/checkpoints/{step}/file", params={"name": name})
    assert answer.status_code in (400, 404), answer.text


def test_no_answer_shows_a_path_of_the_server(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path, eval_prompts=["hello"])
    root = str(server.kept.storage.root)
    for path in (
        "/v1", "/v1/runs", f"/v1/runs/{run.id}", *(f"/v1/runs/{run.id}/{what}" for what in
        ("events", "stream", "metrics", "logs", "checkpoints")), "/v1/models", "/v1/models/version?ref=main.qa.bot",
        f"/v1/datasets/{run.record.train_data.digest}", "/v1/openapi.json", "/metrics",
    ):
        answer = ask(server, "GET", path)
        assert answer.status_code == 200 and root not in answer.text, path
        assert server.token not in answer.text


def test_every_answer_names_its_request(server: Served) -> None:
    assert ask(server, "GET", "/v1", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = ask(server, "GET", "/v1/no", headers={"X-Request-ID": "bad id"})
    assert made.json()["request_id"] == made.headers["x-request-id"] != "bad id"


def test_a_part_of_a_file_can_be_fetched_and_odd_ranges_mean_all_of_it(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path)
    path = f"/v1/models/file?ref={run.registered_model}&name=config.json"
    whole = ask(server, "GET", path).content
    part = ask(server, "GET", path, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, whole[2:5])
    assert part.headers["content-range"] == f"bytes 2-4/{len(whole)}"
    assert ask(server, "GET", path, headers={"Range": "bytes=3-"}).content == whole[3:]
    assert ask(server, "GET", path, headers={"Range": "bytes=99999-"}).status_code == 416
    for odd in ("bytes=0-0,-1", "bytes=" + ",".join(["0-1"] * 20), "bytes=-2", "lines=1-2", "bytes=a-b"):
        assert ask(server, "GET", path, headers={"Range": odd}).content == whole, odd


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "manifest.json", "", "no", "config.json/../x"])
def test_only_a_registered_file_can_be_fetched(server: Served, tmp_path: Path, name: str) -> None:
    ended_run(server, tmp_path)
    assert ask(server, "GET", "/v1/models/file", params={"ref": "main.qa.bot", "name": name}).status_code == 404


def test_metrics_are_thinned_over_the_whole_range(server: Served, tmp_path: Path) -> None:
    run = ended_run(server, tmp_path, training_duration="100ba")
    every = ask(server, "GET", f"/v1/runs/{run.id}/metrics?key=lr&resolution=10").json()["metrics"]
    steps = [row["step"] for row in every]
    assert len(steps) <= 10 and steps[0] == 1 and steps[-1] == 100
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 32
    some = ask(server, "GET", f"/v1/runs/{run.id}/metrics?key=lr&after_step=10&until_step=13").json()["metrics"]
    assert [row["step"] for row in some] == [11, 12, 13]


def test_prometheus_counts_runs_and_requests(server: Served, tmp_path: Path) -> None:
    ended_run(server, tmp_path)
    text = ask(server, "GET", "/metrics").text
    assert 'ftctl_runs{status="COMPLETED"}' in text
    assert 'ftctl_requests_total{method="POST",route="/v1/runs",status="201"}' in text
    assert f'ftctl_info{{version="{fm.__version__}"}} 1' in text
