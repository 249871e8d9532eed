"""``ftctl create``: what a newcomer meets first, over the fake."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.cli.main import run
from support.rows import chats

pytestmark = pytest.mark.usefixtures("fm_fake")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(chats(tmp_path / "train.jsonl"))


@pytest.mark.parametrize(("flag", "key"), [("--duration", "training_duration"), ("--training-duration", "duration")])
def test_a_duration_flag_overrides_the_files_under_either_name(
    data: str, tmp_path: Path, flag: str, key: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: org/m\ntrain_data_path: {data}\n{key}: 3ep\n")
    assert run(["create", "-f", str(file), flag, "5ep"]) == 0
    assert fm.list()[0].record.request.training_duration == "5ep"


def test_create_passes_on_warnings_about_the_request_and_no_others(
    data: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fm.create

    def noisy(**values: Any) -> fm.Run:
        warnings.warn("subprocess 1 is still running", ResourceWarning, stacklevel=2)
        return real(**values)

    monkeypatch.setattr("fm.api.create.create", noisy)
    assert run(["create", "org/m", data, "--learning-rate", "5"]) == 0
    shown = capsys.readouterr().err
    assert "warning: learning_rate" in shown
    assert "subprocess" not in shown


def test_following_ends_with_the_model_that_was_registered(data: str, capsys: Capture) -> None:
    assert run(["create", "org/m", data, "--register-to", "main.support.bot", "--follow"]) == 0
    assert "ftctl models try main.support.bot/1" in capsys.readouterr().err


def test_a_dry_run_says_a_warning_once(data: str, capsys: Capture) -> None:
    assert run(["create", "org/m", data, "--learning-rate", "5", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("usually diverges") == 1


def test_the_adapters_form_and_new_tokens_have_flags(data: str) -> None:
    flags = ["--method", "qlora", "--lora-use-dora", "--lora-use-rslora", "--new-token", "<a>", "--new-token", "<b>"]
    assert run(["create", "org/m", data, *flags]) == 0
    request = fm.list()[0].record.request
    assert (request.method, request.new_tokens) == ("qlora", ("<a>", "<b>"))
    assert request.lora.use_dora and request.lora.use_rslora
