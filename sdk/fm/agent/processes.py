"""Processes named by pid and start time, so that a reused pid is never taken for the process that had it before."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any, Literal

import psutil

from fm.layout import StageFolder


def identify(pid: int) -> dict[str, Any]:
    """What names the process `pid` for good: its pid, start time and host."""
    return {"pid": pid, "started": psutil.Process(pid).create_time(), "host": socket.gethostname()}


def is_alive(identity: dict[str, Any]) -> bool | None:
    """Whether that very process still runs; None if it is on another host."""
    if identity["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(identity["pid"])
        # The start time is derived from the boot time, which a clock adjustment moves a little.
        same = abs(process.create_time() - identity["started"]) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(identity: dict[str, Any], how: Literal["stop", "kill"]) -> None:
    """Signals the process and the group that it leads, if it still is that process."""
    if is_alive(identity):
        number = signal.SIGTERM if how == "stop" else signal.SIGKILL
        try:
            if os.getpgid(identity["pid"]) == identity["pid"]:
                os.killpg(identity["pid"], number)
            else:
                os.kill(identity["pid"], number)
        except ProcessLookupError:
            return


def leftover(folder: StageFolder) -> dict[str, Any] | None:
    """The process that says it works in `folder`, whether or not it still lives."""
    try:
        identity = json.loads(folder.process.read_bytes())
    except (OSError, ValueError):
        return None
    return identity if isinstance(identity, dict) and {"pid", "started", "host"} <= identity.keys() else None
