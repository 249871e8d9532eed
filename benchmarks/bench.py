"""Runs every benchmark of this folder, and writes their figures to `benchmarks/results/<name>.json`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("overhead", "prepare_throughput", "server_load", "plan_speed", "around_training")
ON_THEIR_OWN = ("plan_accuracy", "train_speed")
"""Those that know where their figures go."""


def main() -> int:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    failed = []
    for name in NAMES + ON_THEIR_OWN:
        print(f"== {name}", flush=True)
        where = ["--out", str(results / f"{name}.json")] if name in NAMES else []
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *where], check=False).returncode:
            failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "all done", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
