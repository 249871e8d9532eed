"""How fast ftctl trains, beside TRL, Hugging Face's trainer and a bare loop: same data, weights, precision, examples.

    make peers                                      # TRL and what it needs, in .venv-peers
    python benchmarks/train_speed.py --pairs 5      # the comparison; searches first where there was no search
    python benchmarks/train_speed.py --search       # TRL's best options anew, and the bare loop's best shape
    python benchmarks/train_speed.py --device cuda --size 8b

Each contender trains on all examples once, 16 in a step (128 on a GPU), in a process of its own, by turns, so that a
machine whose speed drifts is as fast for the one as for the other; each turn has a seed of its own, which decides on
the order of the examples. Counted are real tokens (no padding) per second from the end of the second step to the end of
the last, and the most memory up to there. The trained weights are then judged on held-out rows by one program that
knows none of the trainers. A ratio is the median of the ratios of the turns. The losses are drawn in
docs/loss-curves.png.

Figures and trials go to a folder of the machine's own under benchmarks/results/: which options are TRL's best, and how
far ours are from them, depends on the processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

from training import report
from training.clock import Result
from training.lab import PEERS, Contender, Failed, Lab
from training.machine import described, folder_name
from training.search import best, hf_grouped, search_bare, search_trl, trl_defaults
from training.task import DATA, SIZES, precision_of

RESULTS = HERE / "results"
METHODS = ("lora", "full")
Turns = dict[str, dict[str, list[report.Turn]]]
"""By cell and contender."""


def contenders(found: dict[str, Any], method: str, data: str, batch: int) -> dict[str, Contender]:
    """All that are compared, with `batch` examples a step. `found`: what the search wrote for this device and size."""
    trials = found[f"{method} {data}"]
    return {
        "ours": Contender("ours", {}),
        "trl-defaults": Contender("trl", trl_defaults(batch)),
        "trl-best": Contender("trl", best(trials["trl"])),
        "hf-grouped": Contender("hf", hf_grouped(batch)),
        "ceiling": Contender("bare", best(trials["bare"])),
    }


def search(lab: Lab, cells: list[tuple[str, str]], path: Path) -> None:
    """Searches each cell, and writes each trial to `path` as it ends, in place of the same cell's older ones."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for method, data in cells:
        trials = found[f"{method} {data}"] = {"trl": [], "bare": []}
        for who, searching in (("bare", search_bare), ("trl", search_trl)):
            for trial in searching(lab, method, data):
                trials[who].append(trial)
                path.write_text(json.dumps(found, indent=1) + "\n")


def compare(lab: Lab, found: dict[str, Any], cells: list[tuple[str, str]], pairs: int) -> Iterator[Turns]:
    """By cell and contender: the results of all turns so far, after each turn."""
    compared: Turns = {f"{method} {data}": {} for method, data in cells}
    for turn in range(pairs):
        for method, data in cells:
            results: dict[str, Result] = {}
            in_turn = list(contenders(found, method, data, lab.size.batch).items())
            for name, contender in in_turn if turn % 2 == 0 else in_turn[::-1]:
                where = f"{turn + 1}/{pairs} {method} {data} {name}"
                try:
                    results[name] = lab.run(contender, method, data, seed=turn + 1)
                except Failed as error:
                    if name == "ours":
                        raise
                    print(f"{where}: failed, left out: {error}", flush=True)
                    continue
                print(f"{where}: {results[name].tokens_per_second(lab.clock):,.0f} tokens/s", flush=True)
            losses = lab.judge({name: result.weights for name, result in results.items() if result.weights}, data)
            cell = compared[f"{method} {data}"]
            for name, result in results.items():
                cell.setdefault(name, []).append(report.turn_of(result, losses.get(name), lab.clock))
                lab.discard(result)
            for name in [name for name, turns in cell.items() if len(turns) <= turn]:
                del cell[name]  # it failed: a median is one of all turns
        yield compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="turns, in each of which every contender trains once")
    parser.add_argument("--search", action="store_true", help="search TRL's best options anew instead of comparing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=("lora", "full", "qlora"))
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument(
        "--clock", choices=("at", "cpu"), default="at",
        help="count wall-clock seconds, or the processor's: for a busy machine, with OMP_NUM_THREADS=1",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    if not PEERS.exists():
        parser.error(f"{PEERS} is missing; run: make peers")
    place = f"{options.device}-{options.size}".replace("cpu-cpu", "cpu")
    place += "-fp32" if precision_of(options.device) == "fp32" else ""
    results = RESULTS / folder_name(options.device)
    out = options.out or results / f"train_speed_{place}.json"
    found_path = results / f"train_search_{place}.json"
    cells = [(method, data) for method in options.methods for data in options.data]
    found = json.loads(found_path.read_text()) if found_path.exists() else {}
    unsearched = [(method, data) for method, data in cells if f"{method} {data}" not in found]
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "lab", options.size, options.device, options.clock, tuple(options.data))
        search(lab, cells if options.search else unsearched, found_path)
        if options.search:
            return
        machine = described(options.device, lab.precision)
        found = json.loads(found_path.read_text())
        # Hours go into a cell, so one may be measured at a time, and what is measured outlives a turn that fails.
        earlier = json.loads(out.read_text()) if out.exists() else {}
        for turn, compared in enumerate(compare(lab, found, cells, options.pairs), start=1):
            how = {
                "measured": datetime.now(UTC).date().isoformat(), **machine, "device": options.device,
                "size": options.size, "precision": lab.precision, "clock": options.clock, "pairs": turn,
            }  # fmt: skip
            figures = earlier | {
                cell: {"how": how, "contenders": report.summary(turns, lab.size, options.device, cell)}
                for cell, turns in compared.items()
            }
            out.write_text(json.dumps(figures, indent=1) + "\n")
            if place == "cpu":
                report.plot(RESULTS.glob(f"*/train_speed_{place}.json"), HERE.parent / "docs" / "loss-curves.png")
    print(report.table(figures))


if __name__ == "__main__":
    main()
