"""The long proofs: kills by the dozen, wall-clock budgets of a minute, gigabytes of data.

    python benchmarks/prove.py                          # all of it: two hours on two cores
    python benchmarks/prove.py kills --count 20         # one part

Each part's figures go to `benchmarks/proof.json` as soon as it is done; the other parts' stay. The exit code is 1 if a
part does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "examples")]

from proving import prove

from support.budgets import is_kept, run_with_budget
from support.kills import KINDS, Victim, trials
from support.local import local_backend

BEFORE, LASTS = 32, 16
"""Steps whose noise a planted rise is measured by, and for which it lasts."""


def prove_kills(folder: Path, count: int) -> dict[str, Any]:
    """kill -9 of each kind, `count` times: no run lost, none double, weights equal bit for bit."""
    with local_backend(folder) as backend:
        victim = Victim(backend, folder, seed=int(time.time()))
        expected = victim.undisturbed()
        figures: dict[str, Any] = {}
        for kind in KINDS:
            held, hits, attempts, failures = 0, 0, 0, []
            for _ in range(count):
                try:
                    [trial] = trials(victim, kind, 1, expected)
                except AssertionError as error:
                    failures.append(str(error)[:300])
                    continue
                held, hits, attempts = held + 1, hits + trial.hit, attempts + trial.attempts
            figures[kind] = {"kills": count, "held": held, "met_their_moment": hits, "training_starts": attempts}
            figures[kind] |= {"failures": failures} if failures else {}
            print(kind, figures[kind], flush=True)
    return figures | {"holds": all(entry["held"] == count for entry in figures.values())}


def prove_budgets(folder: Path, count: int) -> dict[str, Any]:
    """`count` runs of the demo's model with a budget of 60 s, one of them killed midway."""
    import stdlib_data

    stdlib_data.build(folder / "data")
    outcomes = []
    with local_backend(folder / "home") as backend:
        for number in range(count):
            outcome = run_with_budget(
                backend,
                folder / "home",
                seconds=60,
                kill_after=30.0 if number == count // 2 else None,
                patience=150,
                model="fm/tiny-llama",
                train_data_path=str(folder / "data" / "text"),
                eval_data_path=str(folder / "data" / "text-heldout"),
                task_type="CONTINUED_PRETRAIN",
                method="full",
                learning_rate=3e-3,
                batch_size=4,
                context_length=256,
            )
            outcomes.append(asdict(outcome) | {"kept": is_kept(outcome, seconds=60)})
            print(outcomes[-1], flush=True)
    longest = max(outcome["running_seconds"] for outcome in outcomes)
    kept = sum(outcome["kept"] for outcome in outcomes)
    return {"runs": outcomes, "kept": kept, "longest_seconds": longest, "holds": kept == count}


def prove_watch(folder: Path, count: int) -> dict[str, Any]:
    """`count` sound trainings of different seeds raise no alarm, neither of a spike nor, with a bound of five seconds
    instead of minutes that no such run lasts, of a stall; a rise by four deviations of the 32 steps before it, planted
    for sixteen steps anywhere behind these into their loss curves, is found."""
    import numpy as np
    import stdlib_data

    import fm
    from fm.agent import signs
    from fm_local.trainer.watch import has_spiked

    stdlib_data.build(folder / "data")
    signs._SHORTEST_STALL = timedelta(seconds=5)  # the agent works in this process
    curves: list[list[float]] = []
    alarms = []
    with local_backend(folder / "home", FM_AGENT="inline") as backend, fm.backend(backend):
        for seed in range(count):
            run = fm.create(
                model="fm/nano-llama",
                train_data_path=str(folder / "data" / "pairs.jsonl"),
                task_type="INSTRUCTION_FINETUNE",
                method="full",
                training_duration="200ba",
                save_interval="100ba",
                seed=seed,
            )
            run = fm.wait(run)
            alarms += [event.message for event in run.events() if "stayed high" in event.message]
            alarms += [event.message for event in run.events() if event.type is fm.EventType.REQUEUED]
            rows = backend.runs.metrics(run.id, keys=["loss/train/total"])
            curves.append([row.values["loss/train/total"] for row in rows])
    random, found, missed = np.random.default_rng(0), 0, []
    for number in range(2 * count):
        curve = np.array(curves[number % count])
        begin = int(random.integers(BEFORE, len(curve) - LASTS))
        before, steps = curve[begin - BEFORE : begin], np.arange(BEFORE)
        curve[begin : begin + LASTS] += 4 * (before - np.polyval(np.polyfit(steps, before, 1), steps)).std()
        is_found = any(has_spiked(list(curve[: step + 1])) for step in range(begin, begin + LASTS))
        found += is_found
        missed += [] if is_found else [begin]
    figures = {"clean_runs": count, "alarms": alarms, "planted": 2 * count, "found": found, "missed_at": sorted(missed)}
    return figures | {"holds": not alarms and found >= 0.95 * 2 * count}


def prove_alarms(_: Path) -> dict[str, Any]:
    """False alarms: by step, in noise without a trend; by training of 200 steps, where losses fall by 3 to 200
    deviations of a step's noise and level off, at once or ever more slowly."""
    import numpy as np

    from fm_local.trainer.watch import HISTORY, has_spiked

    random, windows, trainings, steps = np.random.default_rng(0), 500_000, 25, np.arange(200)
    noises: dict[str, Callable[..., Any]] = {
        "normal": random.normal, "log-normal": random.lognormal, "logistic": random.logistic,
        "heavy-tailed": lambda size: random.standard_t(3, size),
    }  # fmt: skip
    by_step = {
        name: sum(has_spiked(list(row)) for row in noise(size=(windows, HISTORY))) / windows
        for name, noise in noises.items()
    }
    alarmed, count = 0, 0
    for fall, end in product((3, 10, 40, 200), (3, 10, 20, 40, 80)):
        for shape in (np.maximum(1 - steps / end, 0), np.exp(-3 * steps / end)):
            for _ in range(trainings):
                losses = list(fall * shape + random.normal(size=len(steps)))
                alarmed += any(has_spiked(losses[:step]) for step in range(HISTORY, len(steps) + 1))
                count += 1
    holds = max(by_step.values()) < 1e-4 and alarmed / count < 1 / 50
    return by_step | {"trainings_that_level_off": count, "of_these_alarmed": alarmed, "holds": holds}


def prove_preflight(folder: Path, count: int) -> dict[str, Any]:
    """`count` preflights of sound requests, each with its own seed and rows: every rung passes. Full training of random
    weights and LoRA on a base that has learnt something, by turns; every fifth climbs to two processes."""
    import fm
    from support.learners import trained_base, word_pairs

    requests: list[dict[str, Any]] = [
        {"model": "fm/nano-llama", "method": "full"}, {"model": trained_base(folder / "base"), "method": "lora"},
    ]  # fmt: skip
    alarms, seconds = [], []
    with local_backend(folder / "home") as backend, fm.backend(backend):
        for seed in range(count):
            data = word_pairs(folder / f"{seed}.jsonl", 100, seed=seed)
            asked = requests[seed % 2] | {"num_processes": 1 + (seed % 5 == 4)}
            found = fm.preflight(train_data_path=data, task_type="INSTRUCTION_FINETUNE", seed=seed, **asked)
            seconds.append(round(sum(rung.seconds for rung in found.rungs), 1))
            alarms += [] if found.passed else [f"{asked}: {found.conclusion()}"]
            print(seed, asked["method"], len(found.rungs), seconds[-1], found.conclusion(), flush=True)
    figures = {"clean_seeds": count, "alarms": alarms, "seconds_median": sorted(seconds)[count // 2]}
    return figures | {"seconds_most": max(seconds), "holds": not alarms}


def prove_verdicts(folder: Path) -> dict[str, Any]:
    """A rank, target modules and a learning rate that are too small, planted: each gets its verdict within 90 s."""
    import fm
    from support.learners import PLANTED, trained_base, word_pairs

    base, data = trained_base(folder / "base"), word_pairs(folder / "pairs.jsonl", 100)
    figures: dict[str, Any] = {}
    with local_backend(folder / "home") as backend, fm.backend(backend):
        for name, (planted, verdict, _) in PLANTED.items():
            began = time.monotonic()
            (rung,) = fm.preflight(base, data, task_type="INSTRUCTION_FINETUNE", **planted).rungs
            seconds = round(time.monotonic() - began, 1)
            right = rung.verdict == verdict and rung.trials[-1].learnt
            figures[name] = {"verdict": rung.verdict, "right": right, "seconds": seconds, "trials": len(rung.trials)}
            print(name, figures[name], flush=True)
    return figures | {"holds": all(entry["right"] and entry["seconds"] < 90 for entry in figures.values())}


def prove_data(folder: Path, megabytes: int) -> dict[str, Any]:
    """A JSONL of `megabytes`: validated and tokenised under 1 GB, at 80 % of the tokenizer's own speed or more."""
    out = folder / "data.json"
    script = [sys.executable, str(HERE / "prepare_throughput.py"), "--megabytes", str(megabytes), "--out", str(out)]
    subprocess.run(script, check=True)
    figures = dict(json.loads(out.read_text()))
    return figures | {"holds": figures["ratio"] >= 0.8 and figures["peak_rss_mb"] < 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["kills", "budgets", "watch", "alarms", "preflight", "verdicts", "data"]
    parser.add_argument("parts", nargs="*", choices=[*names, []], help="which parts (default: all)")
    parser.add_argument("--count", type=int, default=20, help="kills of each kind")
    parser.add_argument("--budgets", type=int, default=10, help="runs with a wall-clock budget")
    parser.add_argument("--seeds", type=int, default=50, help="sound trainings that are watched, and preflights")
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the data")
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda folder: prove_kills(folder, options.count),
        "budgets": lambda folder: prove_budgets(folder, options.budgets),
        "watch": lambda folder: prove_watch(folder, options.seeds),
        "alarms": prove_alarms,
        "preflight": lambda folder: prove_preflight(folder, options.seeds),
        "verdicts": prove_verdicts,
        "data": lambda folder: prove_data(folder, options.megabytes),
    }
    return prove(parts, options.parts)


if __name__ == "__main__":
    sys.exit(main())
