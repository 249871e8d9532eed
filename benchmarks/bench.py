"""Runs every benchmark of this folder, and writes their figures to `benchmarks/results/<name>.json`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("overhead", "prepare_throughput", "server_load", "train_speed")


def main() -> int:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    failed = []
    for name in NAMES:
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py")]
        if subprocess.run([*command, "--out", str(results / f"{name}.json")], check=False).returncode:
            failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "all done", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
