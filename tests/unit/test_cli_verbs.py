"""The verbs of the command line, over the fake: what they print, and where."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.backends.scripted import ScriptedLauncher
from fm.cli.main import run
from fm.context import current
from support.rows import chats

pytestmark = pytest.mark.usefixtures("fm_fake")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(chats(tmp_path / "train.jsonl"))


@pytest.fixture
def qa(data: str, fm_fake: object) -> fm.Run:  # noqa: ARG001
    return fm.create("org/m", data, "main.support.bot", name="qa-1").wait()


def out(capsys: Capture, *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run(list(arguments)) == code
    return capsys.readouterr().out


def test_create_prints_the_run_on_stdout_and_the_next_step_on_stderr(data: str, capsys: Capture) -> None:
    flags = ["--name", "x", "--tag", "team=a", "--eval-prompt", "hi", "--lora-rank", "4"]
    assert run(["create", "org/m", data, *flags]) == 0
    shown = capsys.readouterr()
    assert "x" in shown.out
    assert "ftctl runs wait x" in shown.err
    request = fm.get("x").record.request
    assert (request.tags, request.eval_prompts, request.lora.rank) == ({"team": "a"}, ("hi",), 4)


def test_quiet_prints_ids_alone(data: str, capsys: Capture) -> None:
    shown = out(capsys, "create", "org/m", data, "-q")
    assert shown.strip() == fm.list()[0].id
    assert out(capsys, "runs", "list", "-q") == shown


def test_a_file_holds_the_parameters_and_flags_override_it(data: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: org/m\ntrain_data_path: {data}\nname: from-file\nlearning_rate: 1e-4\n"
        "training_duration: 3ep\nlora: {rank: 8}\ntags: {a: b}\n"
    )
    assert run(["create", "-f", str(file), "--training-duration", "5ep"]) == 0
    run_made = fm.get("from-file")
    assert (run_made.training_duration, run_made.learning_rate) == ("5ep", 1e-4)
    assert run_made.record.request.lora.rank == 8
    assert run(["create", "org/other", "-f", str(file)]) == 0
    assert fm.get("from-file").model == "org/other"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: m\nlearning_rte: 1\n", ":2: there is no parameter 'learning_rte'"),
        ("model: m\nlearning_rte: 1\n", "did you mean learning_rate"),
        ("model: m\nseed: 1\nmodel: n\n", ":3: model is given twice"),
        ("- a\n", "holds no parameters"),
        ("{", "not YAML"),
        ("model: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("1: 2\n", "there is no parameter '1'"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert run(["create", "-f", str(file)]) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_makes_no_run(data: str, capsys: Capture) -> None:
    assert "20 rows" in out(capsys, "create", "org/m", data, "--dry-run")
    assert json.loads(out(capsys, "create", "org/m", data, "--dry-run", "-o", "json"))["train_data"]["rows"] == 20
    assert fm.list() == []


def test_a_warning_goes_to_stderr(data: str, capsys: Capture) -> None:
    assert run(["create", "org/m", data, "--lr", "5e-7"]) == 0
    assert "warning: learning_rate 5e-07" in capsys.readouterr().err


def test_list_prints_a_table_json_or_json_lines(qa: fm.Run, data: str, capsys: Capture) -> None:
    fm.create("org/m", data, name="other")
    assert [line.split()[0] for line in out(capsys, "runs", "list").splitlines()] == ["NAME", "other", "qa-1"]
    assert [item["name"] for item in json.loads(out(capsys, "runs", "list", "-o", "json"))] == ["other", "qa-1"]
    lines = [json.loads(line) for line in out(capsys, "runs", "list", "-o", "jsonl").splitlines()]
    assert lines[1]["id"] == qa.id


def test_list_filters_by_glob_status_moment_and_limit(qa: fm.Run, data: str, capsys: Capture) -> None:
    fm.create("org/m", data, name="other")
    for arguments, expected in (
        (["qa-*"], [qa.id]),
        (["--status", "completed,failed"], [qa.id]),
        (["--since", "2h", "--limit", "1"], [fm.get("other").id]),
        (["--until", "2020-01-01"], []),
        (["--owner", "nobody"], []),
        ([qa.id[:10]], [qa.id]),
    ):
        assert out(capsys, "runs", "list", "-q", *arguments).split() == expected


def test_get_shows_what_is_recorded(qa: fm.Run, capsys: Capture) -> None:
    assert "main.support.bot/1" in out(capsys, "runs", "get", "qa-1")
    assert json.loads(out(capsys, "runs", "get", qa.id[4:9], "-o", "json"))["status"] == "COMPLETED"
    assert run(["runs", "get", "nope"]) == fm.NotFound.exit_code


@pytest.mark.usefixtures("qa")
def test_logs_events_and_metrics_are_printed(capsys: Capture) -> None:
    whole = out(capsys, "runs", "logs", "qa-1")
    assert "step 10/10" in whole
    assert out(capsys, "runs", "logs", "qa-1", "--tail", "1") == whole.splitlines(keepends=True)[-1]
    assert out(capsys, "runs", "logs", "-f", "qa-1") == whole
    assert out(capsys, "runs", "logs", "-f", "--tail", "1", "qa-1") == whole.splitlines(keepends=True)[-1]
    assert "COMPLETED" in out(capsys, "runs", "events", "qa-1")
    assert json.loads(out(capsys, "runs", "events", "qa-1", "-o", "json"))[0]["type"] == "CREATED"
    rows = [json.loads(line) for line in out(capsys, "runs", "metrics", "qa-1", "-o", "jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert out(capsys, "runs", "metrics", "qa-1", "--key", "lr").split()[:2] == ["STEP", "lr"]


def test_what_a_terminal_would_act_on_is_neutralised(
    qa: fm.Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;owned\x07 [red]x[/red]\r"
    folder = current().storage.run(qa.id).attempt(1)  # type: ignore[union-attr]
    assert folder.log.exists()
    chunk = type(current().runs.logs(qa.id))(text=evil, next_offset=1)
    monkeypatch.setattr(type(current().runs), "logs", lambda *_, **__: chunk)
    monkeypatch.setattr("fm.follow.read_logs", lambda _: [evil])
    monkeypatch.setattr("fm.run.read_logs", lambda _: [evil])
    shown = out(capsys, "runs", "logs", "qa-1")
    assert not set(shown) & {"\x1b", "\x07", "\r"}
    assert "[red]x[/red]" in shown
    monkeypatch.setattr("fm.run.Run.run_progress", property(lambda _: evil))
    assert not set(out(capsys, "runs", "list")) & {"\x1b", "\x07", "\r"}


def test_several_runs_are_named_by_globs(data: str, capsys: Capture, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(holds_at=2)
    for name in ("a-1", "a-2", "b"):
        fm.create("org/m", data, name=name)
    assert run(["runs", "cancel", "a-*"]) == 0
    assert "cancelled 2 runs" in capsys.readouterr().err
    assert not fm.get("b").status.is_terminal()
    assert run(["runs", "cancel", "c-*"]) == fm.NotFound.exit_code
    assert run(["runs", "cancel"]) == 2


@pytest.mark.usefixtures("qa")
def test_rerun_and_resume_make_new_runs(data: str, capsys: Capture, fm_fake: ScriptedLauncher) -> None:
    assert "COMPLETED" in out(capsys, "runs", "rerun", "qa-1", "--follow")
    fm_fake.script = fm.testing.Script(fails_at=7)
    fm.create("org/m", data, name="bad").wait(raise_on_failure=False)
    fm_fake.script = fm.testing.Script()
    assert "COMPLETED" in out(capsys, "runs", "resume", "bad", "--follow")
    assert run(["runs", "resume", "qa-1"]) == fm.Conflict.exit_code


def test_rm_asks_first_and_removes_with_yes(qa: fm.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.confirm", _refuse)
    assert run(["runs", "rm", "qa-1"]) == 130
    assert fm.list() == [qa]
    assert run(["runs", "rm", "-y", "qa-*"]) == 0
    assert fm.list() == []


def _refuse(*_: Any, **__: Any) -> None:
    import click

    raise click.Abort


def test_a_plot_counts_whole_steps_and_leaves_its_first_points_in_sight(data: str, capsys: Capture) -> None:
    fm.create("org/m", data, name="p", training_duration="7ba").wait()
    lines = out(capsys, "runs", "plot", "p").splitlines()
    axis = next(line for line in reversed(lines) if line.strip()[:1].isdigit())
    assert all(tick.isdigit() for tick in axis.split())
    legend = next(line for line in lines if "training loss" in line)
    assert legend.index("training loss") > 40


@pytest.mark.usefixtures("qa")
def test_plot_draws_in_the_terminal_or_to_a_png(capsys: Capture, tmp_path: Path) -> None:
    assert "training loss" in out(capsys, "runs", "plot", "qa-1")
    path = tmp_path / "loss.png"
    assert out(capsys, "runs", "plot", "qa-1", "--out", str(path)).strip() == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("qa")
def test_models_are_listed_shown_aliased_and_removed(capsys: Capture) -> None:
    assert out(capsys, "models", "list", "-q").strip() == "main.support.bot/1"
    assert "main.support.bot/1" in out(capsys, "models", "list", "main.*")
    assert out(capsys, "models", "list", "other.*") == ""
    assert run(["models", "alias", "main.support.bot/1", "prod"]) == 0
    assert json.loads(out(capsys, "models", "get", "main.support.bot@prod", "-o", "json"))["version"] == 1
    assert run(["models", "alias", "main.support.bot/1", "7"]) == 2
    names = [item["name"] for item in json.loads(out(capsys, "models", "list", "--available", "-o", "json"))]
    assert {"fm/tiny-llama", "main.support.bot"} <= set(names)
    assert run(["models", "rm", "-y", "main.support.bot/1"]) == 0
    assert run(["models", "get", "main.support.bot"]) == fm.NotFound.exit_code


def test_data_validate_counts_rows_or_names_the_faults(data: str, capsys: Capture, tmp_path: Path) -> None:
    assert json.loads(out(capsys, "data", "validate", data, "-o", "json"))["rows"] == 20
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n{\n')
    assert run(["data", "validate", str(bad)]) == fm.DataError.exit_code
    assert "bad.jsonl:2" in capsys.readouterr().err


def test_data_that_was_sent_is_listed_and_removed_by_a_beginning_of_its_digest(
    data: str, capsys: Capture, tmp_path: Path
) -> None:
    assert out(capsys, "data", "list") == ""
    digest = out(capsys, "data", "add", data, "--sensitive").strip()
    other = out(capsys, "data", "add", str(chats(tmp_path / "other.jsonl", 3))).strip()
    assert set(out(capsys, "data", "list", "-q").split()) == {other, digest}
    head, *lines = [line.split() for line in out(capsys, "data", "list").splitlines()]
    assert head == ["NAME", "SIZE", "ROWS", "SENSITIVE", "AGE", "DIGEST"]
    shown = {line[-1]: line for line in lines}
    assert "yes" not in shown[other] and {"train.jsonl", "20", "yes"} <= set(shown[digest])
    found = json.loads(out(capsys, "data", "list", "-o", "json"))
    assert {one["digest"]: one["sensitive"] for one in found} == {other: False, digest: True}
    assert run(["data", "rm", "-y", ""]) == fm.RequestError.exit_code
    assert run(["data", "rm", "-y", other[:12]]) == 0
    assert run(["data", "rm", "-y", other]) == fm.NotFound.exit_code
    assert "`ftctl data list`" in capsys.readouterr().err
    assert out(capsys, "data", "list", "-q").strip() == digest


def test_data_that_is_wrong_is_not_sent(capsys: Capture, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    assert run(["data", "add", str(bad)]) == fm.DataError.exit_code
    assert out(capsys, "data", "list") == ""


def test_gc_removes_what_nothing_refers_to_and_keeps_the_rest(capsys: Capture) -> None:
    home = Path(os.environ["FM_HOME"])
    assert run(["--backend", "local", "runs", "list"]) == 0
    orphan, young = home / "runs/run-orphan0001", home / "runs/run-young00001"
    for folder in (orphan, young):
        (folder / "check").mkdir(parents=True)
        (folder / "check/log.txt").write_text("x" * 1000)
    for path in (orphan / "check/log.txt", orphan / "check", orphan):
        os.utime(path, (1e9, 1e9))
    assert "run-orphan0001" in out(capsys, "gc", "--dry-run")
    assert orphan.exists()
    assert run(["gc", "-y"]) == 0
    assert not orphan.exists()
    assert young.exists()


def test_gc_refuses_a_storage_root_that_others_may_share(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FM_RUNS", str(tmp_path / "shared"))
    assert run(["gc", "-y"]) == fm.Conflict.exit_code
    assert "--only-store" in capsys.readouterr().err
    assert run(["gc", "-y", "--only-store"]) == 0


def test_fields_within_fields_have_a_row_each(qa: fm.Run, capsys: Capture) -> None:
    shown = out(capsys, "runs", "get", qa.name)
    assert re.search(r"^lora\.rank +16$", shown, re.MULTILINE)
    assert "{" not in shown


def test_a_figure_that_there_is_not_is_named(qa: fm.Run, capsys: Capture) -> None:
    assert run(["runs", "metrics", qa.name, "--key", "nope"]) == 0
    assert "no figure nope" in capsys.readouterr().err
