"""What surrounds the steps of a training, beside TRL: preparing the data, the first step, saving and resuming.

    make peers
    python benchmarks/around_training.py --out benchmarks/results/around_training.json

Preparation is parsing, tokenising and masking of the same rows: by our check stage, a process of its own with all that
it starts, and by `datasets.map` as TRL's trainer calls it, its imports not counted. The rest is of full training, whose
checkpoints are largest: weights and AdamW's two moments in fp32. Seconds to a first step count from the process's
start, on data that ftctl has prepared once and TRL prepares in each process. Medians of alternating turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

from training import ours
from training.clock import spread
from training.lab import PEERS, Contender, Lab
from training.search import trl_defaults
from training.task import SIZES

CONTENDERS = {"ours": Contender("ours", {}), "trl": Contender("trl", trl_defaults(SIZES["cpu"].batch))}
SAVE_AT = 3


def prepare(lab: Lab, turns: int) -> dict[str, list[float]]:
    """Rows per second of each turn."""
    task = lab.tasks["docstrings"]
    rates: dict[str, list[float]] = {"ours": [], "trl": []}
    for turn in range(turns):
        root = lab.folder / f"prepared-{turn}"
        for name in _in_turn(turn):
            if name == "ours":
                seconds = ours.prepare(root, lab.model, Path(task["data"]))["seconds"]
            else:
                seconds = lab.run(CONTENDERS["trl"], "full", "docstrings", seed=turn, steps=1).prepare_s or 0.0
            rates[name].append(task["rows"] / seconds)
        print(f"prepare {turn + 1}/{turns}: " + ", ".join(f"{k} {v[-1]:,.0f} rows/s" for k, v in rates.items()))
    return rates


def save_and_resume(lab: Lab, turns: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each turn, by what took them and contender."""
    seconds: dict[str, dict[str, list[float]]] = {"first_step": {}, "save": {}, "resumed_step": {}}
    for turn in range(turns):
        for name in _in_turn(turn):
            contender = CONTENDERS[name]
            first = lab.run(contender, "full", "docstrings", seed=turn, steps=SAVE_AT + 1, save_at=SAVE_AT)
            again = lab.run(contender, "full", "docstrings", seed=turn, steps=SAVE_AT + 1, resume=first.checkpoint)
            lab.discard(first)
            lab.discard(again)
            assert len(again.steps) == 1, f"{name} began again instead of resuming"
            took = (("first_step", first.first_step_s), ("save", first.save_s), ("resumed_step", again.first_step_s))
            for what, value in took:
                seconds[what].setdefault(name, []).append(value or 0.0)
            print(f"checkpoint {turn + 1}/{turns} {name}: " + ", ".join(f"{what} {v:.2f} s" for what, v in took))
    return seconds


def _in_turn(turn: int) -> list[str]:
    """Who goes first alternates."""
    return list(CONTENDERS) if turn % 2 == 0 else list(CONTENDERS)[::-1]


def compared(values: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and spreads, and ours over TRL's turn by turn."""
    ratios = [o / t for o, t in zip(values["ours"], values["trl"], strict=True)]
    return {name: spread(turns) for name, turns in values.items()} | {"ours_over_trl": spread(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000, help="of the preparation")
    parser.add_argument("--size", default="cpu-large", help="of the model whose checkpoints are saved")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    if not PEERS.exists():
        parser.error(f"{PEERS} is missing; run: make peers")
    with tempfile.TemporaryDirectory() as folder:
        many = Lab(Path(folder) / "many", "tiny", "cpu", "at", ("docstrings",), examples=options.rows)
        few = Lab(Path(folder) / "few", options.size, "cpu", "at", ("docstrings",))
        figures = {
            "cores": os.cpu_count(), "turns": options.turns, "rows": options.rows, "size": options.size,
            "prepare_rows_per_second": compared(prepare(many, options.turns)),
            "seconds": {what: compared(by) for what, by in save_and_resume(few, options.turns).items()},
        }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
