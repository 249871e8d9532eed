"""The accelerators of this machine, and which of them are free."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable


class Devices:
    """Numbers of accelerators to hand out. A machine without any runs one run at a time, whatever its processes."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        self._all = indices
        self._taken: set[int] = set()

    @classmethod
    def of_this_machine(cls) -> Devices:
        """The GPUs that `nvidia-smi` lists, narrowed by CUDA_VISIBLE_DEVICES."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return cls(tuple(int(part) for part in visible.split(",") if part.strip().isdigit()))
        if not shutil.which("nvidia-smi"):
            return cls(())
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return cls(())
        return cls(tuple(range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))))

    _CPU_PROCESSES = 1024

    @property
    def indices(self) -> tuple[int, ...]:
        """Numbers of all accelerators, free or not; empty where there is none."""
        return self._all

    @property
    def total(self) -> int:
        """The most processes that one run may have here."""
        return len(self._all) or self._CPU_PROCESSES

    def free(self, busy: bool) -> int:
        """How many processes a further run may have now; `busy` says whether the machine has a run already."""
        if self._all:
            return len(self._all) - len(self._taken)
        return 0 if busy else self._CPU_PROCESSES

    def take(self, count: int) -> tuple[int, ...]:
        """Reserves `count` free devices; none on a machine without accelerators."""
        chosen = tuple(index for index in self._all if index not in self._taken)[:count]
        self.mark(chosen)
        return chosen

    def mark(self, indices: tuple[int, ...]) -> None:
        self._taken.update(indices)

    def keep(self, indices: Iterable[int]) -> None:
        """Frees all but these."""
        self._taken.intersection_update(indices)
