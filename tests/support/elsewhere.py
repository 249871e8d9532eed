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
_COMMAND = "from fm.cli.main import entry; entry()"


class AgentElsewhere:
    """``ftctl agent --database … --files …`` in a working folder of its own, as another user where that is possible."""

    def __init__(self, home: Path, database: str, files: str) -> None:
        self.home = home
        python, as_user = interpreter_of_another_user()
        self.is_another_user = bool(as_user)
        if as_user:
            os.chown(home, OTHER_USER, OTHER_USER)
        home.chmod(0o700)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FM_")},
            "HOME": str(home),
            "FM_HOME": str(home / "fm"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": _path(),
        }
        with (home / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-c", _COMMAND, "agent", "--database", database, "--files", files],
                cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_user,
            )

    @property
    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    def can_read(self, path: Path) -> bool:
        """Whether the agent's user can look into the folder."""
        python, as_user = interpreter_of_another_user()
        look = [python, "-c", f"import os; os.listdir({str(path)!r})"]
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


@cache
def interpreter_of_another_user() -> tuple[str, dict[str, Any]]:
    """A Python that another user can run with all that is installed here, and how to start it as that user. Who is not
    root can start nothing as others: then it is this very user, in another folder."""
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
        return python, as_user
    return sys.executable, {}


def _path() -> str:
    packages = [str(Path(package.__file__).parents[1]) for package in (fm, fm_local)]
    return os.pathsep.join([*packages, sysconfig.get_path("purelib")])
