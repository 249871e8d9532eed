"""The mutants fit the sources as they are, and their tests exist; `make mutants` shows that those tests kill them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mutants.run import ROOT, Mutant, apply, mutants

TRAPS = set(range(1, 34))
"""Trap 34 is of DPO, whose rows are refused: there is no training to plant it in."""


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.patch.stem)
def test_a_mutant_fits_and_names_its_test_and_is_still_python(mutant: Mutant, tmp_path: Path) -> None:
    assert f"def {mutant.test}" in (ROOT / mutant.file).read_text()
    [name] = re.findall(r"^\+\+\+ b/(\S+)", mutant.patch.read_text(), re.MULTILINE)
    mutated = tmp_path / name
    mutated.parent.mkdir(parents=True)
    shutil.copy(ROOT / name, mutated)
    assert apply(mutant.patch, tmp_path)
    compile(mutated.read_text(), name, "exec")  # else any test that imports it would kill the mutant


def test_every_trap_has_a_mutant() -> None:
    found = {int(match[1]) for mutant in mutants() if (match := re.match(r"trap-(\d+)-", mutant.patch.stem))}
    assert found >= TRAPS
