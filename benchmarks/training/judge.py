"""The loss of trained weights on held-out rows, in fp32, by the same code for all: ``python -m training.judge SPEC``.

It knows transformers and PEFT only. Prints a JSON object of losses (nats for each token of the answers) by name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everyone knows
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.task import tokenize_row


@torch.no_grad()
def loss_of(model: Any, rows: list[tuple[list[int], int]]) -> float:
    """The token-weighted mean over the answers of `rows`, eight at a time, longest first."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: -len(row[0]))
    for start in range(0, len(ordered), 8):
        some = ordered[start : start + 8]
        width = len(some[0][0])
        ids = torch.tensor([row + [1] * (width - len(row)) for row, _ in some], device=model.device)
        labels = torch.full_like(ids, -100)
        for number, (row, prompt) in enumerate(some):
            labels[number, prompt : len(row)] = ids[number, prompt : len(row)]
        # Right-padded and causal: no token of an answer sees the padding.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        total += F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum").item()
        count += int((labels[:, 1:] != -100).sum())
    return total / count


def load(base: Path, weights: Path, device: str) -> Any:
    adapter = (weights / "adapter_config.json").is_file()
    model: Any = AutoModelForCausalLM.from_pretrained(base if adapter else weights, dtype=torch.float32).to(device)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, weights)
    return model.eval()


def main(spec: dict[str, Any]) -> None:
    base = Path(spec["model"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [tokenize_row(tokenizer, json.loads(line)) for line in Path(spec["data"]).read_text().splitlines()]
    rows = [(ids, prompt) for ids, prompt in rows if len(ids) > prompt]
    losses = {}
    for name, folder in spec["weights"].items():
        losses[name] = loss_of(load(base, Path(folder), spec["device"]), rows)
    print(json.dumps(losses))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
