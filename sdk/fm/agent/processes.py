"""Processes named by pid and start time, so that a reused pid is never taken for the process that had it before."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from typing import Any, Literal

import psutil

from fm.layout import StageFolder


def is_here(identity: dict[str, Any]) -> bool:
    """Whether it names a process of this host, or of none in particular."""
    return bool(identity.get("host", socket.gethostname()) == socket.gethostname())


def identify(pid: int) -> dict[str, Any]:
    """What names the process `pid` for good: its pid, start time and host."""
    return {"pid": pid, "started": psutil.Process(pid).create_time(), "host": socket.gethostname()}


def is_alive(identity: dict[str, Any]) -> bool | None:
    """Whether that very process still runs; None if it is on another host."""
    if not is_here(identity):
        return None
    try:
        process = psutil.Process(identity["pid"])
        # The start time is derived from the boot time, which a clock adjustment moves a little.
        same = abs(process.create_time() - identity["started"]) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(identity: dict[str, Any], how: Literal["stop", "kill"]) -> None:
    """Signals the process and the group that it leads, if it still is that process. A kill also reaches its
    descendants, which may have left the group: torchrun gives each of its processes a session of its own."""
    if is_alive(identity):
        family = _descendants(identity["pid"]) if how == "kill" else []
        number = signal.SIGTERM if how == "stop" else signal.SIGKILL
        try:
            if os.getpgid(identity["pid"]) == identity["pid"]:
                os.killpg(identity["pid"], number)
            else:
                os.kill(identity["pid"], number)
        except ProcessLookupError:
            pass  # it ended by itself just now
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def noted_exit(folder: StageFolder) -> int | None:
    """The exit code that the process in `folder` has noted; None if it has not come so far, or was killed."""
    code = (leftover(folder) or {}).get("exit")
    return code if isinstance(code, int) else None


def end_leftover(folder: StageFolder) -> None:
    """Kills the process that says it works in `folder`, if it still lives."""
    if identity := leftover(folder):
        send(identity, "kill")


def leftover(folder: StageFolder) -> dict[str, Any] | None:
    """The process that says it works in `folder`, whether or not it still lives."""
    try:
        identity = json.loads(folder.process.read_bytes())
    except (OSError, ValueError):
        return None
    return identity if isinstance(identity, dict) and {"pid", "started", "host"} <= identity.keys() else None
