"""Seam 2, the Launcher: where the process of a stage runs. Three verbs, nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, Protocol

from fm.job import Stage
from fm.layout import StageFolder
from fm.types import RunRecord

GRACE = timedelta(seconds=60)
"""What a trainer gets to save its last checkpoint once it is asked to stop, and to exit once its run has ended."""

Handle = dict[str, Any]
"""What a launcher needs to find its process again, also from another agent; JSON-able, kept in the store."""


class Life(StrEnum):
    """What is known of a process."""

    ALIVE = "alive"
    EXITED = "exited"
    UNKNOWN = "unknown"
    """It can't be asked now. Lost contact is not failure."""


@dataclass(frozen=True, slots=True)
class Poll:
    """Answer of `Launcher.poll`. `code` is None where nobody saw the process exit; negative for a signal."""

    life: Life
    code: int | None = None


class Launcher(Protocol):
    """Starts and stops the processes that do a run's stages. It is never asked what happened."""

    def start(self, run: RunRecord, folder: StageFolder, stage: Stage) -> Handle:
        """Starts the stage whose job lies in `folder`, detached from the caller."""

    def poll(self, handle: Handle) -> Poll: ...

    def signal(self, handle: Handle, how: Literal["stop", "kill"]) -> None:
        """Asks the process to save and stop, or ends it with all its children. Nothing if it is gone."""
