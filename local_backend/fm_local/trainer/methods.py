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
from fm_local.models.load import (
    is_adapter,
    load_causal_lm,
    load_custom_weights,
    read_adapter_config,
    saved_dtype_of,
)
from fm_local.models.presets import build
from fm_local.models.weights import load_tensors
from fm_local.trainer.device import needs_activation_checkpointing

_MERGE_FIRST = "merge it first: `ftctl models export --merge`, and give the folder as model="


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

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, adapters included."""
        return sum(parameter.numel() for parameter in self.language_model.parameters())


def prepare_model(job: Job, vocab_size: int, *, precision: str, device: torch.device) -> Trainee:
    """Loads the job's base and makes the weights that its method trains trainable.

    Args:
        vocab_size: tokens that the tokenizer has; the model must have an embedding for each.

    Raises:
        RequestError: the method can't be applied to this model.
    """
    lora = job.request.method == "lora"
    base, adapter = _folders(job)
    frozen_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if job.model.kind == "preset":
        if lora:
            raise RequestError(
                f"{job.model.name} has random weights, on which an adapter has nothing to build",
                field="method",
                hint="train it with method='full'; LoRA then suits the model that comes out",
            )
        model = build(PRESETS[job.model.name], vocab_size=vocab_size, seed=job.request.seed)
        saved_dtype = torch.float32
    else:
        assert base is not None, "resolved models have a folder by the time they are trained"
        model = load_causal_lm(base, dtype=frozen_dtype if lora else torch.float32)
        saved_dtype = saved_dtype_of(base)
    if job.request.custom_weights_path:
        load_custom_weights(model, Path(job.request.custom_weights_path))
    if vocab_size > model.get_input_embeddings().num_embeddings:
        raise RequestError(
            f"the tokenizer of {job.model.name} has {vocab_size} tokens, its embeddings "
            f"{model.get_input_embeddings().num_embeddings}",
            field="model",
            hint="resize the embeddings and save the model anew, or use the tokenizer that it was trained with",
        )
    model.config.use_cache = False
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if needs_activation_checkpointing(device, parameters):
        # Not re-entrant: adapters get gradients although the embeddings below them need none.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peft_model = None
    if lora:
        peft_model = _add_adapter(model, job, adapter)
    elif adapter:
        raise RequestError(
            f"{job.model.name} is an adapter, which method='full' can't train", field="method", hint=_MERGE_FIRST
        )
    model.train().to(device)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Trainee(model, peft_model, trainable, job.model.kind == "preset", saved_dtype)


def _folders(job: Job) -> tuple[Path | None, Path | None]:
    """Where the base lies, and the adapter whose training goes on; the check fetched what had to be fetched."""
    prepared = job.prepared or {}
    if job.model.adapter_of is None:
        path = prepared.get("model_path") or job.model.path
        if path and is_adapter(Path(path)):
            raise RequestError(f"{path} holds an adapter, not a whole model", field="model", hint=_MERGE_FIRST)
        return (Path(path) if path else None), None
    base = prepared.get("base_path") or job.model.adapter_of.path
    adapter = prepared.get("model_path") or job.model.path
    return (Path(base) if base else None), (Path(adapter) if adapter else None)


def _add_adapter(model: Any, job: Job, existing: Path | None) -> Any:
    # PEFT takes seconds to import: only who trains an adapter pays for it.
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    lora = job.request.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
    )
    torch.manual_seed(job.request.seed)
    try:
        peft_model = get_peft_model(model, config)
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
        _check_same_shape(peft_model, lora.alpha, existing, weights)
        set_peft_model_state_dict(peft_model, weights)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def _check_same_shape(peft_model: Any, alpha: float, existing: Path, weights: Mapping[str, torch.Tensor]) -> None:
    from peft import get_peft_model_state_dict

    ours = {name: tensor.shape for name, tensor in get_peft_model_state_dict(peft_model).items()}
    theirs = {name: tensor.shape for name, tensor in weights.items()}
    config = read_adapter_config(existing)
    if ours != theirs or config.get("lora_alpha") != alpha:
        raise RequestError(
            f"the adapter in {existing} has another shape (rank {config.get('r')}, alpha {config.get('lora_alpha')}, "
            f"layers {', '.join(sorted(config.get('target_modules') or []))}) than the request asks for",
            field="lora",
            hint=f"give the same shape in lora= to continue it, or {_MERGE_FIRST}",
        )


_BETAS = (0.9, 0.95)
"""As language models are usually trained (GPT-3, Llama) and as the reference has it. With torch's 0.999 the demo's
first stage ends at a held-out loss of 4.13 instead of 3.64."""


def make_optimizer(
    name: str, trainable: Mapping[str, torch.nn.Parameter], weight_decay: float
) -> torch.optim.Optimizer:
    """The request's optimiser. Weight decay spares biases and norms, which hold no direction to decay."""
    matrices = [p for p in trainable.values() if p.dim() >= 2]
    others = [p for p in trainable.values() if p.dim() < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, weight_decay), (others, 0.0))
        if params
    ]
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # Without its own scaling, so that a learning rate means what it means for AdamW.
        adafactor: torch.optim.Optimizer = Adafactor(
            groups, lr=0.0, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return adafactor
    fused = next(iter(trainable.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, fused=fused)
