"""Plants each mutant into a copy of the sources, and shows that its test fails.

    python tests/mutants/run.py [NAME …]

A mutant is a patch whose first line names the test that is to kill it, as ``Test: file::beginning of its name``. All
those tests pass on the sources as they are; that is looked at first. The exit code is 1 if a mutant survives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
_FAILED_TESTS = 1
"""pytest's exit code for tests that ran and failed; an error in collecting them has another."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A patch, and the test that knows the fault by name."""

    patch: Path
    file: str
    test: str

    @classmethod
    def read(cls, patch: Path) -> Mutant:
        file, _, test = patch.read_text().partition("\n")[0].removeprefix("Test: ").partition("::")
        return cls(patch, file, test)


def mutants() -> list[Mutant]:
    """All of them, by name."""
    return [Mutant.read(patch) for patch in sorted(HERE.glob("*.patch"))]


def apply(patch: Path, root: Path, *options: str) -> bool:
    """Whether `patch` fits the sources below `root`; without ``--check`` it is applied."""
    command = ["git", "apply", "--recount", *options, str(patch)]
    # Without a repository above it, git takes the folder as it is.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True).returncode == 0


def run_tests(root: Path, file: str, test: str) -> int:
    """pytest's exit code for the tests of `file` whose names begin with `test`."""
    paths = os.pathsep.join(str(root / part) for part in ("sdk", "local_backend"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", test, file]
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True).returncode


def copy_sources(root: Path) -> None:
    """Copies what the tests need into `root`."""
    for part in ("sdk", "local_backend", "server_stub", "tests", "examples"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", root)


def main() -> int:
    chosen = [mutant for mutant in mutants() if not sys.argv[1:] or mutant.patch.stem in sys.argv[1:]]
    verdicts: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = Path(folder) / "sources"
        root.mkdir()
        copy_sources(root)
        tests: dict[str, set[str]] = {}
        for mutant in chosen:
            tests.setdefault(mutant.file, set()).add(mutant.test)
        sound = {file: run_tests(root, file, " or ".join(names)) == 0 for file, names in tests.items()}
        for mutant in chosen:
            if not sound[mutant.file]:
                verdict = "its test fails without it"
            elif not apply(mutant.patch, root):
                verdict = "does not fit the sources"
            else:
                code = run_tests(root, mutant.file, mutant.test)
                verdict = {_FAILED_TESTS: "killed", 0: "SURVIVED"}.get(code, f"pytest ended with {code}")
                apply(mutant.patch, root, "--reverse")
            verdicts[mutant.patch.stem] = verdict
            print(f"{verdict:<10} {mutant.patch.stem}  ({mutant.file}::{mutant.test})", flush=True)
    killed = sum(verdict == "killed" for verdict in verdicts.values())
    print(f"{killed} of {len(verdicts)} killed")
    # Those that were not chosen keep their last verdict, as long as they exist.
    known = json.loads(RESULT.read_text())["mutants"] if RESULT.exists() else {}
    every = {mutant.patch.stem: verdicts.get(mutant.patch.stem) or known.get(mutant.patch.stem) for mutant in mutants()}
    total = sum(verdict == "killed" for verdict in every.values())
    RESULT.write_text(json.dumps({"killed": total, "mutants": every}, indent=1) + "\n")
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
