"""Letting a causal language model write: the same prompt and seed give the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from fm_local.models.tokenizer import ChatTemplate, Message, added_ids


def prompt_tokens(tokenizer: Any, prompt: str | Sequence[Message], template: str) -> list[int]:
    """The ids that a model is shown: a text as it stands, or a conversation up to where the assistant's answer begins.

    Either way as in training: what the tokenizer puts before a text is there once, what it puts behind is not.
    """
    if isinstance(prompt, str):
        begin, _ = added_ids(tokenizer)
        return [*begin, *tokenizer.encode(prompt, add_special_tokens=False)]
    text = ChatTemplate(template, tokenizer.special_tokens_map).render(prompt, prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


@torch.no_grad()
def continue_tokens(
    model: Any,
    prompt: Sequence[int],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    together: bool = False,
) -> tuple[list[int], bool]:
    """New tokens after `prompt`, without the stop token, and whether the model ended by itself.

    `temperature` 0 takes the likeliest token each time. With a `seed`, random numbers come from it alone; the process's
    own generators are left as they were in any case. `together`: several processes hold the model, and all call this
    with the same arguments; none ends before the others.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Of a prompt that is too long the beginning is cut: what is asked stands at its end.
    ids = list(prompt)[-max(1, longest - max_new_tokens) :] if longest else list(prompt)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop) or None,
        pad_token_id=stop[0] if stop else 0,
        use_cache=True,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature > 0 else {}),
    )
    inputs = torch.tensor([ids], device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        # Without a seed: one from the system, so that two calls differ.
        torch.manual_seed(seed) if seed is not None else torch.seed()
        output = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), generation_config=config, synced_gpus=together
        )
    new = output[0, len(ids) :].tolist()
    ended = bool(new) and new[-1] in stop
    return (new[:-1] if ended else new), ended
