"""What a run on Ray costs beside its training, on a real cluster of two nodes on this machine.

    python benchmarks/ray_overhead.py

- launch: seconds from `fm.create` to the first step, beside those that Ray needs for a job that only says "hi"
- step: median seconds of a step with two workers on two nodes, beside two processes of one machine; in turns. Steps of
  32 docstrings take about a tenth of a second, so that what the machine does besides does not decide

Writes `benchmarks/results/ray_overhead.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "examples")]

import stdlib_data

import fm
from fm.ray.cluster import RayCluster
from support.local import local_backend
from support.ray_cluster import Cluster, ray_cluster
from support.ray_kills import PATIENCE, RayVictim

RESULT = HERE / "results" / "ray_overhead.json"
ROUNDS = 5


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


def main() -> None:
    trivial, launch, on_ray, here = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as name, ray_cluster() as cluster:
        folder = Path(name)
        with local_backend(folder / "fm", OMP_NUM_THREADS="1", **cluster.environment) as backend:
            victim = RayVictim(backend, folder, cluster)
            stdlib_data.build(folder / "data")
            victim.request |= {
                "model": "fm/tiny-llama", "train_data_path": folder / "data" / "pairs.jsonl", "batch_size": 32,
                "context_length": 256, "training_duration": "40ba", "save_interval": "40ba",
            }  # fmt: skip
            for number in range(ROUNDS):
                trivial.append(trivial_job(cluster, number))
                run = victim.create().wait(PATIENCE)
                launch.append(launch_seconds(run))
                on_ray.append(step_seconds(run))
                here.append(step_seconds(victim.here()))
                print(trivial[-1], launch[-1], on_ray[-1], here[-1], flush=True)
    ratios = [ours / theirs for ours, theirs in zip(on_ray, here, strict=True)]
    figures = {
        "rounds": ROUNDS,
        "trivial_job_seconds": median(trivial),
        "launch_seconds": median(launch),
        "step_seconds_on_ray": median(on_ray),
        "step_seconds_here": median(here),
        "step_ratio": median(ratios),
        "step_ratio_least": min(ratios),
        "step_ratio_greatest": max(ratios),
    }
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
