"""How many parameters of a model do what: no trace is needed for that."""

from __future__ import annotations

from typing import Any

from torch import nn

from fm_local.plan.layers import DecoderLayers


def count_parameters(model: Any) -> dict[str, float]:
    """What a whole model has, whatever its step does."""
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    layers = [sum(p.numel() for p in layer.parameters()) for layer in DecoderLayers(model).all]
    linear = [m.weight.numel() for m in model.modules() if _is_linear(m) and m is not head]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "linear": sum(linear),
        "layers": len(layers),
        "in_layers": sum(layers),
        "layer": max(layers),
        "active": _active(model, head, text),
        "width": text.hidden_size,
        "vocabulary_size": text.vocab_size,
        "largest": max(linear),
    }


def _active(model: nn.Module, head: nn.Module | None, config: Any) -> float:
    """Parameters of matrix products before the head that a token passes."""
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if _is_linear(module) and module is not head and ".experts." not in f"{name}."
    )
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    active: float = linear + experts * min(1.0, (getattr(config, "num_experts_per_tok", None) or count) / count)
    return active


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear layer
