"""Whether a trainer's speed is paid for in learning: training loss over one epoch, and held-out loss after it.

    make peers
    python benchmarks/loss_curves.py

ftctl, TRL with its defaults and with its best options, and Hugging Face's trainer by length train on the same examples,
each of them once, with the same rate, decay and batch; by seed, because seeds decide on the order of the examples. One
program judges their weights on held-out rows. Writes `benchmarks/results/loss_curves.json` and a picture for the docs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from train_speed import HERE, RESULTS, contenders
from training import report
from training.lab import Lab
from training.task import precision_of

DATA = "docstrings"
EXAMPLES = 1600
"""Twice the piece within which the others group by length."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=("lora",), choices=("lora", "full", "qlora"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_curves.json", help="where to write the figures")
    options = parser.parse_args()
    place = "cpu" if precision_of("cpu") == "bf16" else "cpu-fp32"
    found = json.loads((RESULTS / f"train_search_{place}.json").read_text())
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "lab", "cpu", "cpu", "at", (DATA,), EXAMPLES)
        for method in options.methods:
            # The bare loop trains on random tokens: there is nothing to learn.
            compared = {k: v for k, v in contenders(found, method, DATA).items() if k != "ceiling"}
            turns: dict[str, list[report.Turn]] = {name: [] for name in compared}
            for seed in range(1, options.seeds + 1):
                results = {n: lab.run(c, method, DATA, seed=seed, steps=None) for n, c in compared.items()}
                losses = lab.judge({name: str(result.weights) for name, result in results.items()}, DATA)
                print(f"{method}, seed {seed}: " + ", ".join(f"{n} {loss:.4f}" for n, loss in losses.items()))
                for name, result in results.items():
                    turns[name].append(report.turn_of(result, losses[name], lab.clock))
                cell = f"{method} {DATA}"
                figures[cell] = {
                    "how": {
                        "measured": datetime.now(UTC).date().isoformat(), "examples": EXAMPLES, "seeds": seed,
                        "size": "cpu", "precision": lab.precision,
                    },
                    "contenders": report.summary(turns, lab.size, lab.device, cell),
                }  # fmt: skip
                options.out.write_text(json.dumps(figures, indent=1) + "\n")
                report.plot(figures, HERE.parent / "docs" / "loss-curves.png")


if __name__ == "__main__":
    main()
