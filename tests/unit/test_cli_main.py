"""The command line as a whole: exit codes, streams, errors, and its documentation."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import fm
from fm.backends.scripted import ScriptedLauncher
from fm.cli.main import INTERRUPTED, main, run
from fm.errors import FMError
from support.rows import chats

ROOT = Path(__file__).parents[2]
TABLE = re.compile(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", re.MULTILINE)


def errors(root: type[FMError] = FMError) -> set[type[FMError]]:
    return {root}.union(*(errors(child) for child in root.__subclasses__() if child.__module__ == "fm.errors"))


def documented() -> dict[str, int]:
    text = (ROOT / "docs" / "exit-codes.md").read_text()
    return {name: int(code) for code, names in TABLE.findall(text) for name in re.findall(r"`(\w+)`", names)}


def test_the_documented_exit_codes_are_those_of_the_error_tree() -> None:
    assert documented() == {error.__name__: error.exit_code for error in errors()}


def test_no_error_has_the_code_of_success_or_of_ctrl_c() -> None:
    assert all(error.exit_code not in (0, INTERRUPTED) for error in errors())
    assert f"| {INTERRUPTED} |" in (ROOT / "docs" / "exit-codes.md").read_text()


def test_the_command_reference_is_current() -> None:
    # In a process of its own: click keeps, of each command, the form of --help under which it was first called.
    command = [sys.executable, "-m", "fm.cli.reference"]
    reference = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text() == reference, "python -m fm.cli.reference > docs/cli.md"


def test_create_has_a_flag_for_every_parameter() -> None:
    from fm.cli.create import create, parameters

    known = {parameter.name for parameter in create.params}
    lora = {"lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"}
    assert set(parameters()) - {"lora", "backend"} <= known
    assert lora <= known


def test_every_command_and_flag_has_its_help() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        children = command.commands.values() if isinstance(command, click.Group) else [command]
        for child in children:
            assert child.help, child.name
            for parameter in child.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {child.name} {parameter.name}"


@pytest.mark.parametrize("error", sorted(errors(), key=lambda error: error.__name__), ids=lambda error: error.__name__)
def test_an_error_becomes_its_message_on_stderr_and_its_exit_code(
    error: type[FMError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        extra = {"extra": "local"} if error is fm.MissingExtra else {"hint": "do that"}
        raise error("what happened \x1b[31m", **extra)

    monkeypatch.setattr("fm.api.runs.list", fail)
    assert run(["runs", "list"]) == error.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "what happened" in shown.err
    assert "→" in shown.err
    assert "\x1b" not in shown.err
    assert "Traceback" not in shown.err


def test_an_internal_error_shows_no_traceback_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("fm.api.runs.list", fail)
    assert run(["runs", "list"]) == 1
    assert "--debug" in capsys.readouterr().err
    assert run(["runs", "list", "--debug"]) == 1
    assert "ZeroDivisionError: oh" in capsys.readouterr().err


def test_debug_adds_the_traceback_and_keeps_message_and_exit_code(
    fm_fake: object,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--debug", "runs", "get", "nope"]) == 4
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "ftctl: there is no run 'nope'" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnus"], "Did you mean runs"),
        (["runs", "lsit"], "No such command"),
        (["runs", "list", "--limit", "0"], "--limit"),
        (["create"], "model is missing"),
        (["runs", "list", "--status", "DONE"], "COMPLETED"),
        (["runs", "list", "--since", "yesterday"], "2026"),
        (["--backend", "lokal", "runs", "list"], "known: fake, local"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err


@pytest.mark.usefixtures("fm_fake")
def test_the_backend_flag_holds_for_its_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--backend", "fake", "runs", "list"]) == 0
    assert "no runs" in capsys.readouterr().err


def test_the_end_of_a_followed_run_is_the_exit_code(tmp_path: Path, fm_fake: ScriptedLauncher) -> None:
    data = str(chats(tmp_path / "d.jsonl"))
    assert run(["create", "org/m", data, "--follow"]) == 0
    fm_fake.script = fm.testing.Script(fails_at=2)
    assert run(["create", "org/m", data, "--follow", "--name", "bad"]) == fm.RunFailed.exit_code
    for verb in (["runs", "wait"], ["runs", "logs", "-f"], ["runs", "events", "-f"]):
        assert run([*verb, "bad"]) == fm.RunFailed.exit_code
    fm_fake.script = fm.testing.Script(holds_at=2)
    assert run(["create", "org/m", data, "--name", "held"]) == 0
    assert run(["runs", "wait", "held", "--timeout", "0"]) == fm.WaitTimeout.exit_code
    assert run(["runs", "cancel", "held"]) == 0
    assert run(["runs", "wait", "held"]) == fm.RunStopped.exit_code
    assert run(["runs", "cancel", "held"]) == fm.Conflict.exit_code


def test_ctrl_c_detaches_with_130_and_says_how_to_come_back(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fm.cli.main", "create", "fm/nano-llama", str(chats(tmp_path / "d.jsonl"))]
    process = subprocess.Popen(
        [*command, "--method", "full", "--follow", "--name", "left"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FM_AGENT": "off"},
    )
    assert process.stderr is not None
    assert "CREATED" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(30) == INTERRUPTED
    assert "ftctl runs wait left" in rest
    assert "Traceback" not in rest


def test_ctrl_c_is_130_also_where_what_it_meets_tells_of_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted_while_compiling(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SyntaxError("can't load unicodedata module") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(main, "main", interrupted_while_compiling)
    assert run(["runs", "list"]) == INTERRUPTED
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) == before


def test_a_reader_that_goes_away_leaves_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_AGENT", "off")
    data = chats(tmp_path / "d.jsonl")
    for _ in range(3):
        fm.create("fm/nano-llama", data, method="full", backend="local")
    process = subprocess.Popen(
        [sys.executable, "-m", "fm.cli.main", "runs", "list", "--watch"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert "nano-llama" in process.stdout.readline() + process.stdout.readline()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.returncode not in (0, None)
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_FTCTL_COMPLETE" in capsys.readouterr().out


def test_doctor_reports_each_thing_and_fails_on_what_stands_in_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    monkeypatch.setattr("fm.cli.doctor._devices", lambda: iter(()))  # imports torch
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    for subject in ("python", "ftctl[local]", "FM_HOME", "run store", "disk", "agent"):
        assert subject in out
    blocked = isolated / "file"
    blocked.write_text("")
    monkeypatch.setenv("FM_HOME", str(blocked))
    assert run(["doctor"]) == fm.Unavailable.exit_code
    assert "fail" in capsys.readouterr().out
