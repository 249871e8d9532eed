"""The slow and certain way to a gradient."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from support.models import Example


def plain_mean_gradient(path: Path, rows: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient the slow way: each example alone, no padding, transformers' own logits, one mean at the end."""
    language_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    total = torch.zeros(())
    labels = 0
    for ids, mask in rows:
        logits = language_model(torch.tensor([ids])).logits[0]
        for position in range(1, len(ids)):
            if mask[position]:
                total = total + F.cross_entropy(logits[position - 1][None], torch.tensor([ids[position]]))
                labels += 1
    (total / labels).backward()
    return (total / labels).item(), {name: p.grad for name, p in language_model.named_parameters()}
