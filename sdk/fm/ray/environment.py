"""The environment of a run's Ray jobs: packages and variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fm.errors import FMError, RequestError

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE",
    # Each line of each process, as it is, with the process that printed it.
    "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0",
    # A process that would tell the training of nodes that are about to be taken away; nobody there listens.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def runtime_environment(own: Mapping[str, str]) -> dict[str, Any]:
    """A job's environment: what FM_RAY_ENV says, a YAML file of Ray's own fields, and `own`, the run's variables. A
    value ``${NAME}`` there is taken from the agent's environment: no store ever holds it.

    Raises:
        RequestError: the file can't be read, or refers to a variable that is not set.
    """
    found: dict[str, Any] = {}
    if path := os.environ.get("FM_RAY_ENV"):
        import yaml

        try:
            found = yaml.safe_load(Path(path).expanduser().read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise _bad_environment(path, str(error)) from None
        if not isinstance(found, dict) or not isinstance(found.get("env_vars", {}), dict):
            raise _bad_environment(path, "it holds no mapping, or an env_vars that is none")
    variables = {name: _resolved(str(value), os.environ) for name, value in found.get("env_vars", {}).items()}
    kept = {name: value for name, value in own.items() if not name.startswith(("CUDA_", "FM_"))}
    return {**found, "env_vars": {**kept, **_QUIET, **variables}}


def _resolved(value: str, environment: Mapping[str, str]) -> str:
    if not (value.startswith("${") and value.endswith("}")):
        return value
    name = value[2:-1]
    if name not in environment:
        raise _bad_environment(os.environ["FM_RAY_ENV"], f"{name}, to which it refers, is not set here")
    return environment[name]


def _bad_environment(path: str, problem: str) -> FMError:
    return RequestError(
        f"FM_RAY_ENV is {path}: {problem}",
        field="FM_RAY_ENV",
        hint="a YAML file with Ray's fields, such as pip and env_vars; ${NAME} stands for a variable of the agent",
    )
