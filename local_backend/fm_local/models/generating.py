"""Letting a causal language model write: the same prompt and seed give the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

SAMPLE_TOKENS = 100


@torch.no_grad()
def continue_tokens(
    model: Any, prompt: Sequence[int], *, stop: Sequence[int], pad: int, max_new_tokens: int, temperature: float,
    top_k: int = 0, top_p: float = 1.0, seed: int | None = None,
) -> tuple[list[int], bool]:
    """New tokens after `prompt` (without the stop token), and whether the model ended by itself.

    `temperature` 0 takes the likeliest token each time. Random numbers come from `seed` alone, and the process's own
    generators are left as they were.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids = list(prompt)
    if longest:
        # What is asked stands at the end of a prompt: the beginning is cut.
        ids = ids[-max(1, longest - max_new_tokens) :]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=list(stop) or None, pad_token_id=pad, use_cache=True, **sampling
    )
    inputs = torch.tensor([ids], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        output = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    new = output[0, len(ids) :].tolist()
    ended = bool(new) and new[-1] in stop
    return (new[:-1] if ended else new), ended
