"""A model of random weights of each family: small, but with what makes the family different.

Sizes are such that windows, experts and states matter within 40 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from support.models import EOS, VOCABULARY

_USUAL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
_WINDOWS = ["sliding_attention", "full_attention"]
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _USUAL),
    "qwen2": ("qwen2", _USUAL),
    "qwen3": ("qwen3", _USUAL),
    "gemma": ("gemma", _USUAL),
    # Caps its logits and those of its attention; every other layer sees a window of 6 tokens.
    "gemma2": ("gemma2", _USUAL | {"sliding_window": 6, "query_pre_attn_scalar": 16, "layer_types": _WINDOWS}),
    "gemma3": ("gemma3_text", _USUAL | {"sliding_window": 6, "query_pre_attn_scalar": 16, "layer_types": _WINDOWS}),
    "mistral": ("mistral", _USUAL | {"sliding_window": 6}),
    # Learned absolute positions.
    "gpt2": ("gpt2", {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2,
                      "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    # Rotates a part of each head; attention and feed-forward side by side.
    "phi": ("phi", _USUAL | {"num_key_value_heads": 2}),
    "phi3": ("phi3", _USUAL | {"sliding_window": 6, "pad_token_id": EOS}),
    "mixtral": ("mixtral", _USUAL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", _USUAL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                         "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1}),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 4}),
    # Short convolutions with attention in every other layer.
    "lfm2": ("lfm2", _USUAL | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
}  # fmt: skip
FAMILIES = tuple(_FAMILIES)
CARRYING = ("mamba", "lfm2")
"""Those in which a state or a convolution runs on from one document into the next."""
ATTENTION = tuple(family for family in FAMILIES if family not in CARRYING)


def config_of(family: str) -> Any:
    """The family's configuration."""
    kind, sizes = _FAMILIES[family]
    return AutoConfig.for_model(kind, **(
        {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None} | sizes
    ))


def save(family: str, folder: Path, *, seed: int = 3) -> Path:
    """A model of about 50,000 parameters with random weights, saved in `folder`."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config_of(family))
    # Larger than the usual initialisation, so that a wrong gradient shows.
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.mul_(5)
    made.save_pretrained(folder)
    return folder
