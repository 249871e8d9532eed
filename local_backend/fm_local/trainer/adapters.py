"""LoRA in all its forms: the adapter that is put on a base, or taken over from an earlier training."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fm.errors import RequestError
from fm.request import LoraConfig
from fm_local.models.load import read_adapter_config
from fm_local.models.new_tokens import trained_rows
from fm_local.models.weights import load_tensors
from fm_local.trainer.fused_lora import fuse_lora

MERGE_FIRST = "merge it first: `ftctl models export --merge`, and give the folder as model="
_SHAPE = ("lora_alpha", "use_rslora", "use_dora", "trainable_token_indices")
"""What decides on what an adapter computes and does not show in the shapes of its tensors."""


def add_adapter(
    model: Any, lora: LoraConfig, *, token_ids: list[int], seed: int, existing: Path | None = None, fused: bool = True
) -> Any:
    """Puts an adapter's layers into `model`, which it freezes, and returns PEFT's view of it.

    Args:
        token_ids: tokens whose rows in embeddings and head are trained along.
        seed: of the new adapter's weights.
        existing: the folder of an adapter that is trained on.
        fused: whether each layer and its adapter become one operation.

    Raises:
        RequestError: the model has no such layers, or the existing adapter is of another shape.
    """
    before = read_adapter_config(existing) if existing else {}
    rows = trained_rows(model, token_ids) if token_ids else before.get("trainable_token_indices")
    if rows:
        _check_rows_are_free(model, lora)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    shape: dict[str, Any] = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "trainable_token_indices": rows,
        "task_type": "CAUSAL_LM",
        "target_modules": targets,
    }
    torch.manual_seed(seed)
    try:
        with _no_needless_bitsandbytes():
            # PEFT takes seconds to import: only who trains an adapter pays for it.
            from peft import LoraConfig as PeftConfig
            from peft import get_peft_model, set_peft_model_state_dict

            peft_model = get_peft_model(model, PeftConfig(**shape))
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise RequestError(
            f"lora.target_modules: {error}", field="lora", hint=f"linear layers: {', '.join(names)}"
        ) from None
    for module in peft_model.modules():
        # Autocast converts the adapter's weights; converting its input as well would keep an fp32 copy of each.
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    if existing:
        weights = load_tensors(existing)
        _check_same_shape(peft_model, existing, before, weights)
        set_peft_model_state_dict(peft_model, weights)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if fused:
        fuse_lora(peft_model)
    return peft_model


@contextmanager
def _no_needless_bitsandbytes() -> Iterator[None]:
    """PEFT imports bitsandbytes wherever it is installed, which takes ten times as long as PEFT itself. Whoever has
    quantised a model has imported it before; for others it is not there, until PEFT is asked again."""
    name = "bitsandbytes"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        from peft.import_utils import is_bnb_4bit_available, is_bnb_available

        for asked in (is_bnb_available, is_bnb_4bit_available):
            asked.cache_clear()


def _check_rows_are_free(model: Any, lora: LoraConfig) -> None:
    taken = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if id(module) in taken}
    if both := sorted(names.intersection(lora.target_modules)):
        raise RequestError(
            f"lora.target_modules puts an adapter on {both[0]}, of which new_tokens trains single rows",
            field="lora",
            hint=f"leave {both[0]} out of target_modules, or train all of it with method='full'",
        )


def _check_same_shape(
    peft_model: Any, existing: Path, before: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> None:
    from peft import get_peft_model_state_dict

    ours = {
        name: tensor.shape
        for name, tensor in get_peft_model_state_dict(peft_model, save_embedding_layers=False).items()
    }
    theirs = {name: tensor.shape for name, tensor in weights.items()}
    now = peft_model.peft_config["default"].to_dict()
    if ours != theirs or any((before.get(key) or None) != (now[key] or None) for key in _SHAPE):
        extra = [key for key in ("use_rslora", "use_dora") if before.get(key)]
        tokens = before.get("trainable_token_indices")
        raise RequestError(
            f"the adapter in {existing} has another shape (rank {before.get('r')}, alpha {before.get('lora_alpha')}, "
            f"layers {', '.join(sorted(before.get('target_modules') or []))}"
            + "".join(f", {key}" for key in extra)
            + (", with new tokens" if tokens else "")
            + ") than the request asks for",
            field="lora",
            hint=f"give the same shape in lora= to continue it, or {MERGE_FIRST}",
        )
