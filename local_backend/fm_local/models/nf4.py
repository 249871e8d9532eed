"""A base held in 4 bits, as QLoRA trains on (Dettmers et al., 2023): NF4 with doubly quantised scales.

In memory only: what is saved, loaded again and merged into is always the base as its files have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fm.errors import MissingExtra, RequestError
from fm_local.models.load import load_causal_lm


def load_nf4(path: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The model in folder `path` on `device`: its linear layers but the head in NF4, the rest and all results in
    `dtype`.

    Raises:
        MissingExtra: bitsandbytes is not installed.
        RequestError: the model has no layer that could be quantised.
        FMError: what `load_causal_lm` raises.
    """
    try:
        import bitsandbytes  # 2.8 s: only who uses it pays for it
    except ModuleNotFoundError as error:
        raise MissingExtra("method='qlora' needs bitsandbytes, not installed here", extra="qlora") from error
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = load_causal_lm(path, dtype=dtype, quantization_config=config, device_map={"": device})
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    if not layers:
        raise RequestError(
            f"the model in {path} has no linear layer that could be held in 4 bits", field="method",
            hint="use method='lora'",
        )
    for layer in layers:
        # On a CPU with AVX512-BF16 bitsandbytes repacks a layer when it is first used without gradients, as in an
        # evaluation, and from then on no gradient passes through it.
        layer.support_avx512bf16_for_cpu = False
    return model


def scales_of(layer: torch.nn.Module) -> Any | None:
    """What the numbers of a layer in 4 bits are scaled by, as bitsandbytes keeps it; None for any other layer."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) or getattr(layer, "quant_state", None)


def dense(weight: torch.Tensor, scales: Any | None) -> torch.Tensor:
    """`weight` in 4 bits with its `scales` as a new matrix, in the layer's number format; without any, as it is."""
    if scales is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    matrix: torch.Tensor = dequantize_4bit(weight, scales)
    return matrix


def size_of(parameter: torch.nn.Parameter) -> int:
    """The numbers that `parameter` stands for, also where several are packed into a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def keep_scales(model: torch.nn.Module, device: torch.device) -> None:
    """Lets the layers in 4 bits hold their scales themselves, on `device`: sharding makes new parameters of the packed
    numbers, without the old ones' attributes, and bitsandbytes then looks for the scales at the layer."""
    for layer in model.modules():
        if (scales := scales_of(layer)) is not None:
            scales.to(device)
            layer.quant_state = scales
