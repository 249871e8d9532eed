"""Scripts written for the reference run with only their import line changed; here with real trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

import fm
from support.local import local_backend
from support.models import model, tokenizer
from support.scripts import SCRIPTS, run_script


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_for_the_reference_trains_on_this_machine(name: str, tmp_path: Path) -> None:
    folder = tokenizer(model("llama", tmp_path / "model"))
    with local_backend(tmp_path / "fm", FM_AGENT="inline") as backend, fm.backend(backend):
        run_script(name, tmp_path, str(folder))
