"""Who calls, from where, with what installed: enough to run the same thing again, and never a secret."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fm.types import Caller

_ENVIRONMENT = (
    *("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "FM_RUNS", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_HOME"),
    *("HF_HUB_CACHE", "HF_HUB_OFFLINE", "LANG", "LC_ALL", "MKL_NUM_THREADS", "MLFLOW_TRACKING_URI", "OMP_NUM_THREADS"),
    *("PYTHONHASHSEED", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_OFFLINE", "WANDB_ENTITY"),
    *("WANDB_MODE", "WANDB_PROJECT"),
)
_PACKAGES = (
    *("accelerate", "datasets", "ftctl", "numpy", "peft", "pyarrow", "pydantic", "safetensors", "sqlalchemy"),
    *("tokenizers", "torch", "transformers"),
)
_CREDENTIALS = re.compile(r"://[^/]*@")
_GIT_SECONDS = 1.0


def describe_caller() -> Caller:
    """The calling process, as a run records it. Takes some tens of milliseconds; never fails."""
    commit, dirty = _git_state(_script_folder())
    return Caller(
        user=_user(),
        host=platform.node(),
        python=sys.executable,
        cwd=_cwd(),
        env={
            name: value
            for name in _ENVIRONMENT
            if (value := os.environ.get(name)) is not None and not _CREDENTIALS.search(value)
        },
        git_commit=commit,
        git_dirty=dirty,
        packages={name: found for name in _PACKAGES if (found := _version(name))},
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _cwd() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # deleted below us
        return ""


def _script_folder() -> Path:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    return script.parent if script.is_file() else Path()


def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the work tree that holds `folder`, and whether tracked files differ from it."""
    # fsmonitor would run a program that the repository names.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), "status", "--porcelain=v2", "--branch", "-uno"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    if done.returncode or commit in (None, "(initial)"):
        return None, None
    return commit, any(not line.startswith("#") for line in lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
