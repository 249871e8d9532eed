"""Scripts written for the reference run with only their import line changed; here on the fake."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.rows import model_folder
from support.scripts import FOLDER, SCRIPTS, run_script


def test_there_are_five() -> None:
    assert len(SCRIPTS) == 5


@pytest.mark.usefixtures("fm_fake")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_for_the_reference_runs_on_the_fake(name: str, tmp_path: Path) -> None:
    run_script(name, tmp_path, str(model_folder(tmp_path / "model")))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_nothing_of_ours_but_fm(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"fm", "time", "datetime"}
    assert "fm" in imported
