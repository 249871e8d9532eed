"""What this machine has, asked of the operating system."""

from __future__ import annotations

from pathlib import Path


def main_memory() -> int:
    """Bytes of this machine's memory that its processes may use: a container may have less than the machine."""
    import psutil

    files = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return min([psutil.virtual_memory().total, *(int(text) for text in texts if text.isdigit())])


def kills_for_memory() -> int:
    """Processes of this machine that its system has ended since it started, for want of memory; 0 where it does not
    say so, as macOS."""
    counters = Path("/proc/vmstat")
    lines = counters.read_text().splitlines() if counters.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
