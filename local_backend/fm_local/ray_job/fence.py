"""Whether an attempt on a cluster is over: its folder says so, where neither signals nor Ray may reach."""

from __future__ import annotations

from contextlib import suppress

from fm.layout import StageFolder
from fm_local.trainer.__main__ import is_outdated


def order(folder: StageFolder) -> str:
    """What the agent has ordered: "stop", "kill", or nothing."""
    with suppress(OSError):  # there is none, or it can't be read just now
        return folder.order.read_text()
    return ""


def is_over(folder: StageFolder) -> bool:
    """Whether the attempt in `folder` has to end at once: it was ordered to, or a newer one has taken its place. What
    can't be read now, on a network's disk, is read at the next look."""
    try:
        return order(folder) == "kill" or is_outdated(folder)
    except OSError:
        return False
