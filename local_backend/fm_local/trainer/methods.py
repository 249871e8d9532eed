"""Which weights are trained: all of them, or an adapter's. What is trained is fp32, whatever it is computed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fm.errors import RequestError
from fm.job import Job
from fm.presets import PRESETS
from fm.request import WHOLE_WEIGHTS
from fm_local.models.load import (
    is_adapter,
    load_causal_lm,
    load_custom_weights,
    read_adapter_config,
    saved_dtype_of,
)
from fm_local.models.new_tokens import make_room, tokens_needed
from fm_local.models.nf4 import load_nf4, size_of
from fm_local.models.presets import build
from fm_local.trainer.adapters import MERGE_FIRST, add_adapter
from fm_local.trainer.copies import share_inputs
from fm_local.trainer.fused_norm import fuse_norms


@dataclass(frozen=True, slots=True)
class Trainee:
    """A model made ready for training."""

    language_model: Any
    """The causal language model; with LoRA, the adapter's layers sit inside it."""
    peft_model: Any | None
    """PEFT's view of the same model; None for method "full"."""
    trainable: Mapping[str, torch.nn.Parameter]
    """What is trained, by its name in the language model; fp32."""
    random_weights: bool
    saved_dtype: torch.dtype
    """In what number format a fully trained model is saved: its base's own."""
    parameters: int
    """Those of the whole model, adapters included; one in 4 bits counts as one."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""


def prepare_model(
    job: Job, tokenizer: Any, *, precision: str, device: torch.device, checkpointing: bool = False
) -> Trainee:
    """Loads the job's base and makes the weights that its method trains trainable.

    Args:
        tokenizer: with the request's new tokens; the model is given embeddings for them, and must have all others.
        checkpointing: whether activations are computed again in the backward pass, if the model's family can do that.

    Raises:
        RequestError: the method can't be applied to this model.
    """
    request = job.request
    vocab_size = len(tokenizer)
    base, adapter = _folders(job)
    frozen_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if job.model.kind == "preset":
        if request.method != "full":
            raise RequestError(
                f"{job.model.name} has random weights, on which an adapter has nothing to build",
                field="method",
                hint="train it with method='full'; LoRA then suits the model that comes out",
            )
        model = build(PRESETS[job.model.name], vocab_size=vocab_size, seed=request.seed)
        saved_dtype = torch.float32
    else:
        assert base is not None, "resolved models have a folder by the time they are trained"
        if request.method == "qlora":
            whole_on = device if request.sharding in WHOLE_WEIGHTS else torch.device("cpu")
            model = load_nf4(base, dtype=frozen_dtype, device=whole_on)
        else:
            model = load_causal_lm(base, dtype=frozen_dtype if request.method == "lora" else torch.float32)
        saved_dtype = saved_dtype_of(base)
    if request.custom_weights_path:
        load_custom_weights(model, Path(request.custom_weights_path))
    if request.new_tokens or (adapter and tokens_needed(read_adapter_config(adapter))):
        added = (job.prepared or {}).get("added_tokens", [])
        make_room(model, vocab_size, added=tokenizer.convert_tokens_to_ids(added))
    if vocab_size > model.get_input_embeddings().num_embeddings:
        raise RequestError(
            f"the tokenizer of {job.model.name} has {vocab_size} tokens, its embeddings "
            f"{model.get_input_embeddings().num_embeddings}",
            field="model",
            hint="name the tokens that the model lacks in new_tokens=, or use the tokenizer that it was trained with",
        )
    model.config.use_cache = False
    checkpointing = checkpointing and model.supports_gradient_checkpointing
    if checkpointing:
        # Not re-entrant: adapters get gradients although the embeddings below them need none.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peft_model = None
    if request.method != "full":
        token_ids = tokenizer.convert_tokens_to_ids(list(request.new_tokens))
        peft_model = add_adapter(model, request.lora, token_ids=token_ids, seed=request.seed, existing=adapter)
    elif adapter:
        raise RequestError(
            f"{job.model.name} is an adapter, which method='full' can't train", field="method", hint=MERGE_FIRST
        )
    elif device.type == "cpu":
        share_inputs(model)
    fuse_norms(model)
    model.train()
    if request.sharding in WHOLE_WEIGHTS:
        model.to(device)  # else each process moves its part
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = sum(size_of(parameter) for parameter in model.parameters())
    is_preset = job.model.kind == "preset"
    return Trainee(model, peft_model, trainable, is_preset, saved_dtype, parameters, checkpointing)


def _folders(job: Job) -> tuple[Path | None, Path | None]:
    """Where the base lies, and the adapter whose training goes on; the check fetched what had to be fetched."""
    prepared = job.prepared or {}
    if job.model.adapter_of is None:
        path = prepared.get("model_path") or job.model.path
        if path and is_adapter(Path(path)):
            raise RequestError(f"{path} holds an adapter, not a whole model", field="model", hint=MERGE_FIRST)
        return (Path(path) if path else None), None
    base = prepared.get("base_path") or job.model.adapter_of.path
    adapter = prepared.get("model_path") or job.model.path
    return (Path(base) if base else None), (Path(adapter) if adapter else None)
