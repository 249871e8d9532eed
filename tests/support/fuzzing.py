"""schemathesis against a server's own OpenAPI, as users of two teams that must not see each other's objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import fm
from fm.remote.opening import open_remote
from fm.testing.serving import Served
from support.data import many_pairs

_NOT_IN_A_SCHEMA = "positive_data_acceptance"
"""That a duration, a name or a digest means something is checked by the server, and can't be said in JSON Schema."""


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """How many cases were tried, and what failed: each kind with its operations."""

    cases: int
    failures: dict[str, list[str]]
    output: str


def fuzz(server: Served, folder: Path, *, examples: int, seed: int) -> Fuzzed:
    """Tries about `examples` cases for each operation and phase; reports are kept in `folder`."""
    folder.mkdir(exist_ok=True)
    tokens = {team: server.token_for(team) for team in ("red", "blue")}
    for team, token in tokens.items():
        _populate(server.url, token, many_pairs(folder / f"{team}.jsonl", 8), team)
    users = [
        {"name": team, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {token}"}]}
        for team, token in tokens.items()
    ]
    (folder / "users.json").write_text(json.dumps({"auth": users}))
    (folder / "schemathesis.toml").write_text('[auth.wfc]\npath = "users.json"\npeers = ["red", "blue"]\n')
    # schemathesis asks for the schema without the users' tokens, which no route but health answers.
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(_schema(server)))
    report = folder / "report.json"
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", schema.name, "--url", server.url,
        "--checks", "all", "--exclude-checks", _NOT_IN_A_SCHEMA, "--max-examples", str(examples), "--seed", str(seed),
        "--continue-on-failure", "--request-timeout", "60", "--max-response-time", "60",
        "--suppress-health-check", "all", "--warnings", "off",
        "--report", "json", "--report-json-path", report.name,
    ]
    settings = {**os.environ, "NO_PROXY": "127.0.0.1", "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(report.read_text())
    failures = {entry["title"]: entry["operations"] for entry in found["failures"]}
    if done.returncode and not failures:
        failures = {f"exit code {done.returncode}": [done.stderr[-300:]]}
    return Fuzzed(found["test_cases"]["generated"], failures, done.stdout)


def _populate(url: str, token: str, data: Path, team: str) -> None:
    """Gives the team a run that has ended and a model, so that there is something not to be shown to the other."""
    remote = open_remote(url, token=token)
    name = {"register_to": f"main.qa.{team}", "name": f"{team}-run"}
    run = fm.create("fm/nano-llama", data, task_type="INSTRUCTION_FINETUNE", method="full", backend=remote, **name)
    run.wait(60)
    remote.close()


def _schema(server: Served) -> Any:
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.get(f"{server.url}/v1/openapi.json", headers=headers, trust_env=False).json()
