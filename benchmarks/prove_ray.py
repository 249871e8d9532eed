"""The long proofs of runs on Ray, on a real cluster of two nodes on this machine: parts of it are killed, one by one.

    python benchmarks/prove_ray.py                    # all of it: three quarters of an hour on two cores
    python benchmarks/prove_ray.py node --count 3     # one part

Figures go to `benchmarks/proof.json`; the exit code is 1 if a part does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

from proving import keep, prove

from support.local import local_backend
from support.ray_cluster import ray_cluster
from support.ray_kills import PARTS, PATIENCE, RayVictim


def killing(part: str, count: int) -> Callable[[Path], dict[str, Any]]:
    """Kills `part` of a training over two nodes, `count` times: no run lost, none double, losses as undisturbed."""

    def run(folder: Path) -> dict[str, Any]:
        began = time.monotonic()
        figures: dict[str, Any] = {"kills": 0, "held": 0, "met_their_moment": 0, "failures": [], "holds": False}
        with (
            ray_cluster() as cluster,
            local_backend(folder / "fm", OMP_NUM_THREADS="1", **cluster.environment) as backend,
        ):
            victim = RayVictim(backend, folder, cluster)
            undisturbed = victim.create().wait(PATIENCE)
            for _ in range(count):
                run = victim.create()
                figures["kills"] += 1
                figures["met_their_moment"] += victim.disturb(run, part)
                try:
                    victim.check(run, undisturbed, starts=1 if part == "agent" else 2)
                    figures["held"] += 1
                except AssertionError as error:
                    figures["failures"].append(str(error)[:300])
                keep(f"ray {part}", figures, began)
        return figures | {"holds": figures["held"] == count}

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"ray {part}" for part in PARTS]
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what is killed (default: each)")
    parser.add_argument("--count", type=int, default=10, help="kills of each")
    options = parser.parse_args()
    parts = dict(zip(names, (killing(part, options.count) for part in PARTS), strict=True))
    return prove(parts, [f"ray {part}" for part in options.parts])


if __name__ == "__main__":
    sys.exit(main())
