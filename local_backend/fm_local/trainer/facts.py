"""What a process itself took and computed, for who wants to compare processes: every process writes a file of its own.

The first line describes the training, each further one a step. The reporter's figures come from one process only, and
would hide it if the others did something else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from fm.files import disk_errors, make_private
from fm.layout import StageFolder
from fm_local.trainer.batching import Examples
from fm_local.trainer.setup import Training
from fm_local.trainer.step import Gradients


class RankFacts:
    """Appends to ``ranks/<rank>.jsonl`` of a stage folder."""

    def __init__(self, folder: StageFolder, training: Training, rank: int) -> None:
        self._folder = make_private(folder.ranks)
        self._path = folder.ranks / f"{rank}.jsonl"
        self._trainable = list(training.trainee.trainable.values())
        config = training.trainee.language_model.config.get_text_config().to_dict()
        chances = [value for key, value in config.items() if "drop" in key and isinstance(value, float)]
        self._write(
            {
                "examples": len(training.data),
                "least_loss": least_loss(training.data),
                # Each process draws its own: with dropout two processes don't compute what one does.
                "dropout": any(chances),
                "sharded": training.sharded,
            }
        )

    def add(self, step: int, result: Gradients) -> None:
        """Notes the step after `step` others: the gradients are still in the parameters."""
        line = {"step": step, "examples": result.examples, "loss": result.loss, "norm": result.norm}
        self._write({**line, "gradient": fingerprint(self._trainable)})

    def _write(self, line: dict[str, Any]) -> None:
        with disk_errors(self._folder), self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def least_loss(data: Examples) -> float:
    """Mean cross-entropy, in nats, that remains when all of `data` is known by heart: where texts begin alike and go on
    differently, nobody can tell which one it is."""
    nexts: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
    for index in range(len(data)):
        ids, trained = data[index]
        prefix = hashlib.blake2b(digest_size=16)
        for position, token in enumerate(ids.tolist()):
            if position and trained[position]:
                nexts[prefix.digest()][token] += 1
            prefix.update(token.to_bytes(4, "little"))
    labels = sum(counts.total() for counts in nexts.values())
    nats = sum(
        count * math.log(counts.total() / count) for counts in nexts.values() for count in counts.values()
    )
    return nats / max(1, labels)


def fingerprint(parameters: list[torch.nn.Parameter]) -> str:
    """The same for two processes if, and as good as only if, their gradients are equal bit for bit. Costs one pass over
    them, on their device; of a sharded parameter this process's part is meant."""
    sums = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        # Sums of integers don't depend on the order in which they are made.
        sums.append(local.contiguous().view(torch.int32).sum(dtype=torch.int64).reshape(1))
    numbers = torch.cat(sums).tolist() if sums else []
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]
