"""Prepares the task once in a folder, and runs one contender at a time on it, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from training import ours
from training.clock import Result
from training.task import SIZES, make_model, make_tokenizer, precision_of, write_rows

BENCHMARKS = Path(__file__).resolve().parents[1]
EXAMPLES = BENCHMARKS.parent / "examples"
PEERS = BENCHMARKS.parent / ".venv-peers" / "bin" / "python"
LIMIT_S = 1800
"""After which a worker is given up."""
WORKERS = {"ours": "training.ours", "trl": "training.peers", "hf": "training.peers", "bare": "training.bare"}


@dataclass(frozen=True)
class Contender:
    """Who trains, and with which options beyond those that are the same for all."""

    worker: str
    options: dict[str, Any]


class Failed(Exception):
    """A worker ended with an error; holds the end of what it printed."""


class Lab:
    """A folder with a model and data, made ready for every contender."""

    def __init__(
        self, folder: Path, size: str, device: str, clock: str, data: tuple[str, ...], examples: int | None = None
    ) -> None:
        """`examples`, unless those of the size."""
        self.folder, self.device, self.clock, self.size = folder, device, clock, SIZES[size]
        self.precision = precision_of(device)
        self.model = folder / "model"
        self._numbers = count(1)
        self.model.mkdir(parents=True)
        make_model(self.model, self.size)
        make_tokenizer(self.model, self.size)
        self.tasks: dict[str, dict[str, Any]] = {}
        for kind in data:
            place = folder / kind
            place.mkdir()
            write_rows(kind, place, self.size, examples or self.size.examples)
            made = ours.prepare(place / "root", self.model, place / "train.jsonl")
            self.tasks[kind] = made | {
                "data": str(place / "train.jsonl"), "root": str(place / "root"),
                "held_out": str(place / "heldout.jsonl"),
                "tokens": made["prepared"]["counts"]["tokens"], "rows": made["prepared"]["counts"]["examples"],
            }  # fmt: skip

    def run(self, contender: Contender, method: str, data: str, *, seed: int, **more: Any) -> Result:
        """An epoch of `contender` in a new process. `more`: ``steps``, after how many it ends instead; ``save_at``, the
        step after which a checkpoint is saved; ``resume``, the folder of one to go on from.

        Raises:
            Failed: it ended with an error.
        """
        number, task = next(self._numbers), self.tasks[data]
        options = dict(contender.options)
        if contender.worker in ("trl", "hf"):
            options["trainer"] = contender.worker
        spec = {
            "method": method, "seed": seed, "device": self.device, "precision": self.precision,
            "model": str(self.model), "attempt": number,
            "steps": None, "save_at": None, "resume": None,
            "tokens_per_step": self.tokens_per_step(data), "batch": self.size.batch, "options": options,
            "started": time.time(), **task, **more,
        }  # fmt: skip
        path = self.folder / f"{number}.json"
        self._python(WORKERS[contender.worker], str(path), json.dumps(spec))
        return Result.read(path)

    def tokens_per_step(self, data: str) -> float:
        """On average."""
        task = self.tasks[data]
        return float(self.size.batch * task["tokens"] / task["rows"])

    def judge(self, weights: dict[str, str], data: str) -> dict[str, float]:
        """Held-out loss by contender."""
        spec = {
            "model": str(self.model), "data": self.tasks[data]["held_out"], "weights": weights, "device": self.device
        }  # fmt: skip
        return dict(json.loads(self._python("training.judge", json.dumps(spec)).splitlines()[-1]))

    def discard(self, result: Result) -> None:
        """Removes the weights and checkpoints that a run has left: those of a large model fill a disk."""
        if result.weights:
            shutil.rmtree(Path(result.weights).parent, ignore_errors=True)

    def _python(self, module: str, *arguments: str) -> str:
        python = str(PEERS) if module == "training.peers" else sys.executable
        path = os.pathsep.join([str(BENCHMARKS), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        done = subprocess.run(
            [python, "-W", "ignore", "-m", module, *arguments],
            env=environment, capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
        if done.returncode:
            raise Failed((done.stdout + done.stderr)[-1500:])
        return done.stdout
