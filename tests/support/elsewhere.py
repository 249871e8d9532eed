"""Agents on other machines: processes that share a database and a file store with the backend, and no folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

import fm
import fm_local
from support.local import processes_of

OTHER_USER = 54321
PRINTED = "printed-elsewhere"
"""Stands in what a trainer prints, which otherwise is nothing."""
TRAINER_THREADS = "1"
_COMMAND = "from fm.cli.main import entry; entry()"


class AgentElsewhere:
    """``ftctl agent --database … --files …`` in a working folder of its own, as another user where that is possible."""

    def __init__(self, home: Path, database: str, files: str) -> None:
        self.home = home
        python, as_user = python_without_rights()
        if as_user:
            os.chown(home, OTHER_USER, OTHER_USER)
        home.chmod(0o700)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FM_")},
            "HOME": str(home),
            "FM_HOME": str(home / "fm"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": TRAINER_THREADS,
            "PYTHONPATH": _path(),
            "PYTHONWARNINGS": PRINTED,  # no such filter: each Python says so when it starts, also the trainer's
        }
        with (home / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*python, "-c", _COMMAND, "agent", "--database", database, "--files", files],
                cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_user,
            )

    @property
    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    def can_read(self, path: Path) -> bool:
        """Whether the agent can look into the folder."""
        python, as_user = python_without_rights()
        look = [*python, "-c", f"import os; os.listdir({str(path)!r})"]
        return subprocess.run(look, cwd="/", capture_output=True, **as_user).returncode == 0

    def kill(self) -> None:
        """Ends the agent and its trainers with SIGKILL, as when the machine loses power."""
        for process in [*processes_of(self.home), psutil.Process(self.process.pid)]:
            process.kill()
        self.process.wait()


@contextmanager
def machines() -> Iterator[Path]:
    """A folder that every user may pass through, with what is below it removed at the end, and its processes killed."""
    with tempfile.TemporaryDirectory(prefix="machines-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            for process in processes_of(folder):
                process.kill()


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Nobody may enter `folder` meanwhile, also not its owner; only root, as which no agent elsewhere runs, can."""
    mode = folder.stat().st_mode & 0o777
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(mode)


@cache
def python_without_rights() -> tuple[list[str], dict[str, Any]]:
    """How to start a Python that has all that is installed here, and no right of this user that could be done without.

    It is another user's if this one is root. Where no other user can run a Python with what is installed, it is root's
    without the right to read what its permissions forbid. Who is not root can start nothing as others.
    """
    if os.geteuid() != 0:
        return [sys.executable], {}
    as_user: dict[str, Any] = {"user": OTHER_USER, "group": OTHER_USER, "extra_groups": []}
    same = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, f"/usr/local/bin/{same}", f"/usr/bin/{same}"):
        try:
            subprocess.run(
                [python, "-c", "import fm, fm_local, torch"], check=True, capture_output=True, cwd="/",
                env={**os.environ, "PYTHONPATH": _path()}, **as_user,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return [python], as_user
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable], {}


def _path() -> str:
    packages = [str(Path(package.__file__).parents[1]) for package in (fm, fm_local)]
    return os.pathsep.join([*packages, sysconfig.get_path("purelib")])
