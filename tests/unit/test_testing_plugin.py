"""What users get for their own tests: the fixtures, without torch and without anything of the machine's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fm
from fm import settings

pytest_plugins = ["pytester"]

_USERS_TEST = """
import sys

import fm


def test_my_script_registers_a_model(fm_fake, tmp_path):
    data = tmp_path / "chats.jsonl"
    data.write_text({row!r} * 3)
    run = fm.create(model="org/model-7b", train_data_path=str(data), register_to="main.support.bot", learning_rate=1e-4)
    assert run.wait().registered_model == "main.support.bot/1"
    assert "torch" not in sys.modules


def test_what_my_script_says_of_a_failure(fm_fake, tmp_path):
    fm_fake.script = fm.testing.Script(fails_at=3, failure="the loss is not finite")
    data = tmp_path / "chats.jsonl"
    data.write_text({row!r} * 3)
    run = fm.create(model="org/model-7b", train_data_path=str(data))
    assert run.wait(raise_on_failure=False).reason == "the loss is not finite"


def test_nothing_of_the_test_before_is_left(fm_fake):
    assert fm.list() == []
"""


_SETTINGS_TEST = """
import os

import pytest

import fm
from fm.remote.contexts import Context, Contexts


@pytest.fixture
def chosen():
    Contexts().with_context("team", Context(url="http://127.0.0.1:9", token="t"), use=True).write()


def test_no_setting_of_the_machine_reaches_a_test(chosen, fm_home):
    assert {name for name in NAMES if name in os.environ} == {"FM_HOME", "FM_BACKEND"}
    assert os.environ["FM_HOME"] == str(fm_home)
    assert fm.list() == []
"""


def test_the_fixtures_let_no_setting_of_the_machine_reach_a_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = re.findall("^FM_[A-Z_]+", settings.__doc__ or "", re.MULTILINE)
    assert len(names) > 8
    for name in names:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    pytester.makepyfile(_SETTINGS_TEST.replace("NAMES", repr(names)))
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_users_fixtures_run_without_torch(pytester: pytest.Pytester) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    pytester.makepyfile(_USERS_TEST.format(row=json.dumps({"messages": messages}) + "\n"))
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


def test_the_plugin_alone_imports_nothing_heavy() -> None:
    # It is loaded in every test session of an environment with ftctl, most of which never touch fm.
    heavy = "{'torch', 'sqlalchemy', 'httpx', 'rich', 'pydantic'}"
    script = f"import sys, fm.testing.plugin; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_fake_is_chosen_by_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fm_local.trainer", raising=False)  # an earlier test may have imported it
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    with fm.backend("fake", script=fm.testing.Script(steps=3)):
        run = fm.create(model="x/y", train_data_path=str(data), task_type="INSTRUCTION_FINETUNE").wait()
        assert [step for step, _ in run.metrics("loss/train/total").series("loss/train/total")] == [1, 2, 3]
    monkeypatch.setenv("FM_BACKEND", "fake")
    assert fm.list() == []
    assert "fm_local.trainer" not in sys.modules
