"""Whether an attempt on a cluster is over: its folder says so, where neither signals nor Ray may reach."""

from __future__ import annotations

from fm.layout import StageFolder
from fm_local.trainer.__main__ import is_outdated


def order(folder: StageFolder) -> str:
    """What the agent has ordered: "stop", "kill", or nothing."""
    try:
        return folder.order.read_text()
    except FileNotFoundError:
        return ""


def is_over(folder: StageFolder) -> bool:
    """Whether the attempt in `folder` has to end at once: it was ordered to, or a newer one has taken its place."""
    return order(folder) == "kill" or is_outdated(folder)
