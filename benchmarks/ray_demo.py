"""The demo's fine-tuning on a real Ray cluster of two nodes on this machine, beside two processes without one.

    python benchmarks/ray_demo.py                          # the demo's own lengths
    python benchmarks/ray_demo.py --base 60_000 --tuned 40_000

Data, base model and parameters are those of `examples/demo.py`; `--base` and `--tuned` are the tokens of its two
trainings. Writes `benchmarks/results/ray_demo.json`; the exit code is 1 if a step's losses differ by more than 1e-3, or
an answer of the two models differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "examples")]

import stdlib_data
from ray_overhead import step_seconds

import fm
from fm.backends.stored import StoreBackend
from support.local import local_backend
from support.ray_cluster import Cluster, ray_cluster
from support.ray_kills import farthest, losses, until

RESULT = HERE / "results" / "ray_demo.json"
QUESTIONS = 20


def pretrain(data: Path, tokens: str, backend: StoreBackend) -> fm.Run:
    """The demo's base model."""
    return fm.create(
        model="fm/tiny-llama", train_data_path=data / "text", eval_data_path=data / "text-heldout",
        task_type="CONTINUED_PRETRAIN", method="full", training_duration=f"{tokens}tok", learning_rate=3e-3,
        batch_size=4, context_length=256, eval_interval="250ba", save_interval="250ba",
        register_to="demo.python.base", backend=backend,
    ).wait()  # fmt: skip


def tune(data: Path, tokens: str, backend: StoreBackend, **where: Any) -> fm.Run:
    """The demo's fine-tuning, by two processes."""
    return fm.create(
        model="demo.python.base", train_data_path=data / "pairs.jsonl", eval_data_path=data / "pairs-heldout.jsonl",
        task_type="INSTRUCTION_FINETUNE", training_duration=f"{tokens}tok", learning_rate=5e-3, batch_size=8,
        context_length=256, eval_interval="200ba", save_interval="200ba", register_to="demo.python.qa",
        backend=backend, num_processes=2, **where,
    )  # fmt: skip


def compare(cluster: Cluster, folder: Path, base: str, tuned: str) -> dict[str, Any]:
    data = folder / "data"
    stdlib_data.build(data)
    with local_backend(folder / "fm", OMP_NUM_THREADS="1", **cluster.environment) as backend:
        pretrain(data, base, backend)
        on_ray = tune(data, tuned, backend, launcher="ray", num_nodes=2)
        until(lambda: all(cluster.workers().values()) or on_ray.refresh().status.is_terminal(), "a worker on each node")
        workers = {node: len(processes) for node, processes in cluster.workers().items()}
        on_ray.wait()
        here = tune(data, tuned, backend).wait()
        rows = [json.loads(line) for line in (data / "pairs-heldout.jsonl").read_text("utf-8").splitlines()]
        prompts = [row["prompt"] for row in rows[:: len(rows) // QUESTIONS][:QUESTIONS]]
        answers = [
            [model.generate(prompt, max_new_tokens=60) for prompt in prompts]
            for model in (fm.load(run, backend=backend) for run in (on_ray, here))
        ]
        files = [backend.models.get(run.registered_model).files for run in (on_ray, here)]
        name = "adapter_model.safetensors"
        return {
            "tokens": {"base": int(base), "tuned": int(tuned)},
            "workers": workers,
            "steps": len(losses(on_ray)),
            "loss": {"first": losses(on_ray)[1], "last": losses(on_ray)[max(losses(on_ray))]},
            "largest_difference_of_a_loss": farthest(on_ray, here),
            "step_seconds": {"on_ray": step_seconds(on_ray), "here": step_seconds(here)},
            "answers": len(prompts),
            "equal_answers": sum(one == other for one, other in zip(*answers, strict=True)),
            "equal_weights": files[0][name] == files[1][name],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="650_000", help="tokens that the base model is pretrained on")
    parser.add_argument("--tuned", default="250_000", help="tokens of the fine-tuning")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-demo-") as folder, ray_cluster() as cluster:
        figures = compare(cluster, Path(folder), options.base, options.tuned)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    same = figures["largest_difference_of_a_loss"] <= 1e-3 and figures["equal_answers"] == figures["answers"]
    return int(not (same and figures["workers"] == {"head": 1, "second": 1}))


if __name__ == "__main__":
    sys.exit(main())
