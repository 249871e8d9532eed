"""What is traced on fake tensors against what the real trainer's module keeps for its backward pass."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

from fm.request import LoraConfig
from fm_local.models.tokenizer import load_tokenizer
from fm_local.plan import tracing
from fm_local.plan.tracing import Step, trace
from fm_local.trainer import loss as token_loss
from fm_local.trainer.batching import MicroBatch
from fm_local.trainer.loss import TokenLoss
from fm_local.trainer.methods import prepare_model
from fm_local.trainer.short_attention import SHORT
from support import models

LLAMA = LlamaConfig(
    vocab_size=1024, hidden_size=64, intermediate_size=176, num_hidden_layers=5, num_attention_heads=4,
    num_key_value_heads=2,
)
QWEN = Qwen2Config(
    vocab_size=512, hidden_size=48, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=4, tie_word_embeddings=True,
)
GPT2 = GPT2Config(vocab_size=300, n_positions=128, n_embd=32, n_layer=5, n_head=2, resid_pdrop=0.1, attn_pdrop=0.0)
MIXTRAL = MixtralConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
)
LFM2 = Lfm2Config(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=7, num_attention_heads=4,
    num_key_value_heads=2, layer_types=["conv", "conv", "full_attention"] * 2 + ["conv"], pad_token_id=None,
)
JAMBA = JambaConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, num_experts=4, attn_layer_period=4, attn_layer_offset=2, mamba_d_state=8, pad_token_id=None,
)
TWO_MODULES = LoraConfig(target_modules=("q_proj", "v_proj"), dropout=0.1)
SHAPES: dict[str, tuple[Any, Step]] = {
    "Llama, LoRA, bf16": (LLAMA, Step(2, 96, LoraConfig(rank=8), torch.bfloat16, autocast=True)),
    "Llama, LoRA, checkpointed": (LLAMA, Step(3, 64, LoraConfig(), torch.bfloat16, autocast=True, checkpointing=True)),
    "Llama, full, fp32, few labels": (LLAMA, Step(4, 48, labels=0.25)),
    "Qwen2, full, bf16, written-out attention": (
        QWEN, Step(2, 80, autocast=True, by_products=True, shares_inputs=True)
    ),
    "Qwen2, LoRA with dropout on two modules": (QWEN, Step(1, 127, TWO_MODULES)),
    "GPT-2, full, bf16, with dropout": (GPT2, Step(3, 50, autocast=True, shares_inputs=True)),
    "Mixtral, full, fp32, experts": (MIXTRAL, Step(2, 40)),
    "Mixtral, LoRA, bf16, experts": (MIXTRAL, Step(2, 40, LoraConfig(), torch.bfloat16, autocast=True)),
    "LFM2, LoRA, bf16, convolutions and attention": (LFM2, Step(2, 48, LoraConfig(), torch.bfloat16, autocast=True)),
    "Jamba, full, fp32, state spaces, attention and experts": (JAMBA, Step(2, 24)),
}


@dataclass(eq=False)
class Kept:
    """What autograd holds in a tensor's stead, and lets go with the graph."""

    storage: torch.UntypedStorage
    tensor: torch.Tensor


def counted(config: Any, step: Step, folder: Path) -> int:
    """Bytes that the trainer's module, with real weights, really keeps: each storage once, without parameters."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    method = {"method": "lora", "lora": step.lora.model_dump()} if step.lora else {"method": "full"}
    job, _ = models.make_job(folder / "runs", rows=models.examples(2), base=folder, **method)
    words = load_tokenizer(folder / "runs" / "tokenizer")
    precision = "bf16" if step.autocast else "fp32"
    model = prepare_model(job, words, precision=precision, device=torch.device("cpu")).language_model
    if step.by_products:
        model.set_attn_implementation(SHORT)
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    places = step.rows * step.width
    labels = max(1, round(places * step.labels))
    ids = torch.randint(0, 250, (step.rows, step.width))
    batch = MicroBatch(ids, torch.arange(places)[:labels], torch.randint(0, 250, (labels,)))
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()
    with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
        module = TokenLoss(model)
        own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

        def keep(tensor: torch.Tensor) -> Kept:
            kept.add(found := Kept(tensor.untyped_storage(), tensor))
            return found

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda found: found.tensor):
            loss = module(batch)
    storages = {found.storage.data_ptr(): found.storage.nbytes() for found in kept}
    assert loss[0].requires_grad  # what it keeps is still there
    return sum(size for place, size in storages.items() if place not in own)


@pytest.mark.parametrize("name", SHAPES)
def test_the_bytes_kept_for_the_backward_pass_are_predicted_within_two_percent(name: str, tmp_path: Path) -> None:
    config, step = SHAPES[name]
    predicted = trace(config, step).saved
    assert predicted == pytest.approx(counted(config, step, tmp_path), rel=0.02)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)])
def test_a_long_row_takes_as_much_as_if_all_its_blocks_of_logits_were_traced(
    lora: LoraConfig | None, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(1, 2000, lora, autocast=autocast, rows_of_logits=256, accumulating=True)
    blocks, compute = Counter[str](), token_loss.cross_entropy

    def counted_cross_entropy(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks[when] += 1
        return compute(*given)

    monkeypatch.setattr(token_loss, "cross_entropy", counted_cross_entropy)
    when = "two"
    few = asdict(trace(LLAMA, step))
    monkeypatch.setattr(tracing, "_BLOCKS", None)
    when = "all"
    assert few == pytest.approx(asdict(trace(LLAMA, step)), rel=1e-3)
    assert blocks == {"two": 2 * 2, "all": 2 * 8}  # at two depths
    assert few["forward_logits"] > 0
