"""The weights to register: what transformers and PEFT load by themselves, with the tokenizer that was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from fm.files import atomic_folder, seal
from fm.job import Job
from fm.layout import StageFolder
from fm_local.models.weights import save_tensors
from fm_local.trainer.methods import Trainee
from fm_local.trainer.parts import gather
from fm_local.trainer.setup import Training

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def final_weights(trainee: Trainee) -> dict[str, torch.Tensor]:
    """The tensors to save, gathered in the first process. All processes have to call it. A fully trained model is
    converted to its saved format by this."""
    if trainee.peft_model is None:
        return gather(trainee.language_model.to(trainee.saved_dtype).state_dict(keep_vars=True))
    # PEFT takes seconds to import: only who trains an adapter pays for it.
    from peft import get_peft_model_state_dict

    state = trainee.peft_model.state_dict(keep_vars=True)
    return gather(get_peft_model_state_dict(trainee.peft_model, state_dict=state, save_embedding_layers=False))


def save_final(
    folder: StageFolder,
    training: Training,
    job: Job,
    weights: Mapping[str, torch.Tensor],
    *,
    metrics: Mapping[str, float],
) -> Path:
    """Writes ``final/`` with `weights`, whole or not at all."""
    trainee, tokenizer = training.trainee, training.tokenizer
    generation = _generation_config(training)
    with atomic_folder(folder.final) as unfinished:
        if trainee.peft_model is not None:
            _save_adapter(trainee.peft_model, weights, unfinished, (job.model.adapter_of or job.model).name)
        else:
            trainee.language_model.config.use_cache = True
            trainee.language_model.generation_config = generation
            trainee.language_model.save_pretrained(unfinished, state_dict=dict(weights))
        generation.save_pretrained(unfinished)
        tokenizer.chat_template = training.template
        tokenizer.save_pretrained(unfinished)
        kind = "full" if trainee.peft_model is None else "adapter"
        seal(unfinished, kind=kind, base_digest=(job.prepared or {}).get("base_digest"), metrics=dict(metrics))
    return folder.final


def _generation_config(training: Training) -> GenerationConfig:
    """Samples as the base does, and stops where training stopped."""
    tokenizer, stop = training.tokenizer, training.stop_tokens
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(stop) or None,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stop[0] if stop else None),
    }
    base = training.trainee.language_model.generation_config
    given = {
        name: value for name in ("do_sample", "repetition_penalty", *_SAMPLING)
        if (value := getattr(base, name, None)) is not None
    }  # fmt: skip
    if given.keys() & set(_SAMPLING):
        given.setdefault("do_sample", True)  # some bases say how to sample, and not that they do
    config = GenerationConfig(**ids, **given)
    try:
        config.validate(strict=True)
    except ValueError:  # transformers reads such a base, and saves no such config
        return GenerationConfig(**ids)
    return config


def _save_adapter(peft_model: Any, weights: Mapping[str, torch.Tensor], folder: Path, base_name: str) -> None:
    save_tensors(folder / "adapter_model.safetensors", weights)
    config = peft_model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    # Sets have no order of their own: sorted, so that the same training gives the same digest.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True, default=str))
