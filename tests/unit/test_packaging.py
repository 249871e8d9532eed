"""What is installed: pinned to the last package, whole in a wheel, and by a Makefile that says what it lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("sdk", "local_backend", "server_stub")


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def installed_with(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Name and version of each installed package that `name[extras]` needs, directly or not."""
    found: dict[str, str] = {}
    waiting = [(name, extras)]
    seen = set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        distribution = metadata.distribution(asked[0])
        found[canonicalize_name(asked[0])] = distribution.version.partition("+")[0]
        for text in distribution.requires or ():
            needed = Requirement(text)
            environments = [{**default_environment(), "extra": extra} for extra in ("", *asked[1])]
            if needed.marker is None or any(needed.marker.evaluate(dict(each)) for each in environments):
                waiting.append((needed.name, frozenset(needed.extras)))
    return found


def test_every_package_that_is_installed_is_the_pinned_one() -> None:
    needed = installed_with("ftctl", frozenset({"dev"}))
    del needed["ftctl"]
    assert len(needed) > 50
    assert {name: pins().get(name) for name in needed} == needed


def test_every_requirement_of_every_extra_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for text in (text for group in groups for text in group):
        requirement = Requirement(text)
        if requirement.name != "ftctl":
            assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), text


def test_no_pin_has_a_local_version() -> None:
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins().values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ROOTS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(tree)], check=True)
    return next(out.glob("ftctl-*.whl"))


def test_the_wheel_holds_all_sources_and_the_type_markers(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT / root).as_posix()
        for root in ROOTS
        for pattern in ("*.py", "py.typed")
        for path in (ROOT / root).rglob(pattern)
    }
    assert {"fm/py.typed", "fm_local/py.typed"} <= sources
    assert sources <= held
    assert not any(name.startswith(("tests/", "examples/", "benchmarks/")) for name in held)


def test_the_wheel_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    target = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True)
    # The dependencies are those of this environment, whose own ftctl comes second.
    Path(target, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = subprocess.check_output(
        # -I: whatever PYTHONPATH says, as in a second checkout.
        [python, "-I", "-c", "import fm, fm_local; print(fm.__file__); print(fm_local.__file__)"],
        cwd=tmp_path,
        text=True,
    )
    assert all(line.startswith(target) for line in where.splitlines())
    version = subprocess.check_output([python.with_name("ftctl"), "--version"], cwd=tmp_path, text=True)
    assert metadata.version("ftctl") in version


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("python", "said"), [("", "no Python 3.11 or newer"), ("false", "older than Python 3.11")])
def test_make_says_which_python_it_needs(python: str, said: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "venv", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_calls_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make test")
    assert "make test" in (ROOT / "README.md").read_text()
