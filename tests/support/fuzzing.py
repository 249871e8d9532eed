"""schemathesis against a server's own OpenAPI, as users of two teams that must not see each other's objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import fm
from fm.remote.opening import open_remote
from fm.testing.serving import Served
from support.data import many_pairs

HOOKS = Path(__file__).with_name("fuzz_hooks.py")
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
    things = {team: _populate(server.url, token, folder, team) for team, token in tokens.items()}
    others = {tokens["red"]: things["blue"].words, tokens["blue"]: things["red"].words}
    users = [
        {"name": team, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {token}"}]}
        for team, token in tokens.items()
    ]
    (folder / "users.json").write_text(json.dumps({"auth": users}))
    (folder / "schemathesis.toml").write_text('[auth.wfc]\npath = "users.json"\npeers = ["red", "blue"]\n')
    # schemathesis asks for the schema without the users' tokens, which no route but health answers.
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(_with_things(_schema(server), list(things.values()))))
    report = folder / "report.json"
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", schema.name, "--url", server.url,
        "--checks", "all", "--exclude-checks", _NOT_IN_A_SCHEMA, "--max-examples", str(examples), "--seed", str(seed),
        "--continue-on-failure", "--request-timeout", "60", "--max-response-time", "60",
        "--suppress-health-check", "all", "--warnings", "off",
        "--report", "json", "--report-json-path", report.name,
    ]
    checks = {"SCHEMATHESIS_HOOKS": str(HOOKS), "FM_FUZZ_OTHERS": json.dumps(others)}
    settings = {**os.environ, **checks, "NO_PROXY": "127.0.0.1"}
    settings |= {"HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(report.read_text())
    failures = {entry["title"]: entry["operations"] for entry in found["failures"]}
    if done.returncode and not failures:
        failures = {f"exit code {done.returncode}": [done.stderr[-300:]]}
    return Fuzzed(found["test_cases"]["generated"], failures, done.stdout)


@dataclass(frozen=True, slots=True)
class _Things:
    """What a team has: the values by which parameters mean it."""

    run: str
    name: str
    digest: str
    ref: str
    file: str

    @property
    def words(self) -> list[str]:
        """What stands in no answer but about the team's own."""
        return [self.run, self.name, self.digest, self.ref, self.file]


def _populate(url: str, token: str, folder: Path, team: str) -> _Things:
    """Gives the team data, a run that has ended and a model: something that is not to be shown to the other."""
    remote, data = open_remote(url, token=token), folder / f"{team}.jsonl"
    data.write_text(many_pairs(data, 8).read_text().replace("what is", f"{team} asks"))
    name = {"register_to": f"main.qa.{team}", "name": f"{team}-run"}
    run = fm.create("fm/nano-llama", data, task_type="INSTRUCTION_FINETUNE", method="full", backend=remote, **name)
    run.wait(60)
    remote.close()
    return _Things(run.id, run.name, run.record.train_data.digest, f"main.qa.{team}", data.name)


def _with_things(schema: Any, things: Sequence[_Things]) -> Any:
    """`schema` whose parameters are now and then what there is, of either team: random ones would never be."""
    values = {
        "run": [value for thing in things for value in (thing.run, thing.name)], "cursor": [x.run for x in things],
        "digest": [thing.digest for thing in things], "ref": [thing.ref for thing in things],
    }
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if known := values.get(parameter["name"]):
                    parameter["schema"] = {"anyOf": [{"enum": known}, parameter["schema"]]}
    parts = schema["components"]["schemas"]
    for part, field, known in (("Data", "digest", values["digest"]), ("AliasChange", "ref", values["ref"])):
        parts[part]["properties"][field] = {"anyOf": [{"enum": known}, parts[part]["properties"][field]]}
    return schema


def _schema(server: Served) -> Any:
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.get(f"{server.url}/v1/openapi.json", headers=headers, trust_env=False).json()
