"""What a run on Ray costs beside its training, on a real cluster of two nodes on this machine.

    python benchmarks/ray_overhead.py

- launch: seconds from `fm.create` to the first step, beside those that Ray needs for a job that only says "hi"
- step: median seconds of a step with two workers on two nodes, beside two processes of one machine; in turns, of which
  every other begins with the latter. Steps of 128 docstrings take some tenths of a second

What trains has half of the cores to itself, in both cases, and everything else the other half: here two nodes' services
are on one machine, whereas a cluster's nodes have cores to spare for their own. `--shared` leaves everything on all
cores.

Writes `benchmarks/results/ray_overhead.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "examples")]

import psutil
import stdlib_data
from training.machine import described

import fm
from fm.ray.cluster import RayCluster
from support.local import local_backend
from support.ray_cluster import Cluster, ray_cluster
from support.ray_kills import PATIENCE, RayVictim

RESULT = HERE / "results" / "ray_overhead.json"
ROUNDS = 7


def trivial_job(cluster: Cluster, number: int) -> float:
    """Seconds until Ray has run a job that does nothing."""
    ray, began = RayCluster(cluster.address, cluster.token), time.monotonic()
    ray.submit(f"trivial-{number}", "echo hi", {}, cpus=0)
    while not ((job := ray.job(f"trivial-{number}")) and job.ended):
        time.sleep(0.05)
    return time.monotonic() - began


def launch_seconds(run: fm.Run) -> float:
    """From the create to the start of the training."""
    started = next(event for event in run.events() if event.type is fm.EventType.TRAIN_STARTED)
    return (started.time - run.created_at).total_seconds()


def step_seconds(run: fm.Run) -> float:
    """The median step, without the first tenth."""
    seconds = [row.values["time/step_seconds"] for row in run.metrics("time/step_seconds")]
    return median(seconds[len(seconds) // 10 :])


def keep_apart(trainers: set[int]) -> None:
    """Moves whatever trains to the cores of `trainers` as soon as it is there, for ever."""
    while True:
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or ())
            rank = "fm_local.trainer" in command and "torch.distributed.run" not in command
            if rank or "RayTrainWorker" in command:
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    for thread in process.threads():
                        os.sched_setaffinity(thread.id, trainers)
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", action="store_true", help="leave everything on all cores")
    if not (shared := parser.parse_args().shared):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[len(cores) // 2 :])  # and so whatever is started from here
        threading.Thread(target=keep_apart, args=(set(cores[: len(cores) // 2]),), daemon=True).start()
    trivial, launch, on_ray, here = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as name, ray_cluster() as cluster:
        folder = Path(name)
        with local_backend(folder / "fm", OMP_NUM_THREADS="1", **cluster.environment) as backend:
            victim = RayVictim(backend, folder, cluster)
            stdlib_data.build(folder / "data")
            victim.request |= {
                "model": "fm/tiny-llama", "train_data_path": folder / "data" / "pairs.jsonl", "batch_size": 128,
                "context_length": 256, "training_duration": "40ba", "save_interval": "40ba",
            }  # fmt: skip
            for number in range(ROUNDS):
                trivial.append(trivial_job(cluster, number))
                for where in ("ray", "here") if number % 2 == 0 else ("here", "ray"):
                    if where == "here":
                        here.append(step_seconds(victim.here()))
                        continue
                    run = victim.create().wait(PATIENCE)
                    launch.append(launch_seconds(run))
                    on_ray.append(step_seconds(run))
                print(trivial[-1], launch[-1], on_ray[-1], here[-1], flush=True)
    ratios = [ours / theirs for ours, theirs in zip(on_ray, here, strict=True)]
    figures = described("cpu", "fp32") | {
        "rounds": ROUNDS,
        "trivial_job_seconds": median(trivial),
        "launch_seconds": median(launch),
        "step_seconds_on_ray": median(on_ray),
        "step_seconds_here": median(here),
        "step_ratio": median(ratios),
        "step_ratio_least": min(ratios),
        "step_ratio_greatest": max(ratios),
    }
    earlier = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    cores = "shared by all" if shared else "half for what trains"
    RESULT.write_text(json.dumps(earlier | {cores: figures}, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
