"""``ftctl admin``: what its verbs print, and what they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fm
from fm.cli.main import run
from fm.errors import Conflict, Damaged, NotFound, RequestError
from fm.store.store import RunStore
from support.teams import TwoTeams

Capture = pytest.CaptureFixture[str]
DIGEST = "0" * 64


@pytest.fixture(autouse=True)
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("FM_STORE", url)
    return url


def out(capsys: Capture, *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run(["admin", *arguments]) == code
    return capsys.readouterr().out


def values(capsys: Capture, *arguments: str) -> list[dict[str, object]]:
    found = json.loads(out(capsys, *arguments, "-o", "json"))
    assert isinstance(found, list)
    return found


def test_a_team_is_made_limited_and_listed(capsys: Capture) -> None:
    out(capsys, "teams", "add", "red")
    out(capsys, "teams", "set", "red", "--max-running", "2", "--max-disk", "500GB")
    [_, red] = values(capsys, "teams", "list")
    assert (red["name"], red["max_running"], red["max_disk"]) == ("red", 2, 500 * 10**9)
    assert "500 GB" in out(capsys, "teams", "list")
    out(capsys, "teams", "set", "red", "--max-disk", "none")
    assert values(capsys, "teams", "list")[1]["max_disk"] is None
    assert out(capsys, "teams", "list", "-q").split() == ["local", "red"]


def test_a_token_is_printed_once_on_stdout_and_works(capsys: Capture, url: str) -> None:
    out(capsys, "teams", "add", "red")
    out(capsys, "users", "add", "red", "ada")
    text = out(capsys, "tokens", "make", "red", "ada", "--scope", "read").strip()
    store = RunStore(url)
    who = store.access.authenticate(text)
    assert (who.team, who.user, who.scopes) == ("red", "ada", {"read"})
    for arguments in (["tokens", "list"], ["tokens", "list", "-o", "json"], ["audit", "-o", "json"], ["audit"]):
        shown = out(capsys, *arguments)
        assert who.token_id in shown
        assert text.rsplit("_", 1)[1] not in shown
    out(capsys, "tokens", "revoke", who.token_id)
    with pytest.raises(fm.Unauthorised):
        store.access.authenticate(text)
    store.close()
    made = json.loads(out(capsys, "tokens", "make", "red", "ada", "-o", "json"))
    assert made["token"].startswith(f"ftc_{made['id']}_")


def test_grants_and_marks_are_made_listed_and_taken_back(capsys: Capture, url: str, tmp_path: Path) -> None:
    teams = TwoTeams(url, tmp_path / "runs")
    teams.finish(teams.create(teams.red, register_to="a.b.c"))
    teams.dataset("red", DIGEST)
    teams.close()
    out(capsys, "grants", "add", "red", "model", "a.b.c", "blue")
    out(capsys, "grants", "add", "red", "data", DIGEST, "blue")
    assert [grant["object"] for grant in values(capsys, "grants", "list")] == [DIGEST, "a.b.c"]
    out(capsys, "grants", "rm", "red", "model", "a.b.c", "blue")
    assert out(capsys, "grants", "list", "-q").split() == [DIGEST]
    out(capsys, "data", "mark", "red", DIGEST, "--sensitive")
    assert values(capsys, "data", "list")[0]["sensitive"] is True
    out(capsys, "data", "mark", "red", DIGEST, "--not-sensitive")
    assert values(capsys, "data", "list")[0]["sensitive"] is False


def test_the_audit_log_is_listed_and_verified(capsys: Capture, url: str) -> None:
    out(capsys, "teams", "add", "red")
    noted = out(capsys, "audit", "--verify").strip()
    out(capsys, "teams", "add", "blue")
    assert out(capsys, "audit", "--verify", "--noted", noted).strip() != noted
    [latest] = values(capsys, "audit", "--limit", "1")
    assert (latest["action"], latest["object"]) == ("team.add", "blue")
    out(capsys, "audit", "--verify", "--noted", "f" * 64, code=Damaged.exit_code)
    store = RunStore(url)
    with store.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_no_UPDATE")
        connection.exec_driver_sql("UPDATE audit SET record = replace(record, 'red', 'rad')")
    store.close()
    out(capsys, "audit", "--verify", code=Damaged.exit_code)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["teams", "set", "nope", "--max-running", "1"], NotFound.exit_code),
        (["teams", "set", "local"], RequestError.exit_code),
        (["teams", "set", "local", "--max-running", "-1"], RequestError.exit_code),
        (["teams", "set", "local", "--max-disk", "much"], RequestError.exit_code),
        (["teams", "add", "local"], Conflict.exit_code),
        (["teams", "add", "../x"], RequestError.exit_code),
        (["users", "add", "nope", "ada"], NotFound.exit_code),
        (["users", "rm", "local", "ada"], NotFound.exit_code),
        (["tokens", "make", "local", "nobody"], NotFound.exit_code),
        (["tokens", "revoke", "nope"], NotFound.exit_code),
        (["tokens", "make", "local", "ada", "--scope", "root"], RequestError.exit_code),
        (["grants", "add", "local", "model", "a.b.c", "local"], Conflict.exit_code),
        (["data", "mark", "local", DIGEST, "--sensitive"], NotFound.exit_code),
        (["audit", "--noted", DIGEST], RequestError.exit_code),
    ],
)
def test_what_can_not_be_done_is_said_with_its_exit_code(arguments: list[str], code: int, capsys: Capture) -> None:
    assert out(capsys, *arguments, code=code) == ""


def test_the_store_can_be_named_on_the_command_line(capsys: Capture, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    out(capsys, "--database", other, "teams", "add", "red")
    assert out(capsys, "--database", other, "teams", "list", "-q").split() == ["local", "red"]
    assert out(capsys, "teams", "list", "-q").split() == ["local"]
