"""Models of random weights, for which nothing has to be downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fm.presets import Preset


def config_of(preset: Preset, *, vocab_size: int | None = None) -> LlamaConfig:
    """The configuration of `preset`, with embeddings for `vocab_size` tokens; None for as many as the preset says."""
    return LlamaConfig(
        vocab_size=vocab_size or preset.vocab_size,
        hidden_size=preset.hidden_size,
        intermediate_size=preset.intermediate_size,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        max_position_embeddings=preset.max_context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )


def build(preset: Preset, *, vocab_size: int, seed: int) -> Any:
    """A Llama of `preset`'s shape in fp32, embeddings sized for the tokenizer; the same seed gives the same weights.

    Args:
        vocab_size: tokens of the tokenizer trained on the run's data; at most the preset's own size, usually equal.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config_of(preset, vocab_size=vocab_size))
