"""How far the planner's memory lies from published peaks on GPUs.

Two constants (workspaces, fragmentation) are fitted on every second row; errors are reported on the other rows, which
the fit never sees. Configurations are written out from the models' public config.json.

    python benchmarks/plan_accuracy.py            # writes benchmarks/results/plan_accuracy.json
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, MistralConfig

from fm.plans import Memory
from fm.request import LoraConfig
from fm_local.plan.memory import Numbers, memory_of
from fm_local.plan.tracing import Step, Traced, trace

GIB = 2**30
RESULT = Path(__file__).parent / "results" / "plan_accuracy.json"


def llama(hidden: int, inner: int, layers: int, heads: int, kv: int, words: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=words, **more,
    )


CONFIGS = {
    "Llama-2-7B": llama(4096, 11008, 32, 32, 32, 32000),
    "Llama-2-70B": llama(8192, 28672, 80, 64, 8, 32000),
    "Yi-34B": llama(7168, 20480, 60, 56, 8, 64000),
    "Mistral-7B-v0.2": MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, sliding_window=None,
    ),
    "Llama-3.2-3B": llama(3072, 8192, 28, 24, 8, 128256, head_dim=128, tie_word_embeddings=True),
    "Llama-3.1-8B": llama(4096, 14336, 32, 32, 8, 128256),
    "Llama-3.1-70B": llama(8192, 28672, 80, 64, 8, 128256),
}


class PlainLoss(nn.Module):
    """transformers' loss of early 2024: all logits, in fp32, and a shifted copy of them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> tuple[torch.Tensor]:
        logits = self.model(input_ids=batch.ids, use_cache=False).logits.float()
        shifted = logits[:, :-1].contiguous().flatten(0, 1)
        return (functional.cross_entropy(shifted, batch.labels[: len(shifted)]),)


class UpcastLoss(PlainLoss):
    """torchtune's loss: all logits, in fp32."""

    def forward(self, batch: Any) -> tuple[torch.Tensor]:
        logits = self.model(input_ids=batch.ids, use_cache=False).logits.float().flatten(0, 1)
        return (functional.cross_entropy(logits, batch.labels),)


class ChunkedLoss(PlainLoss):
    """torchtune's compiled loss in 8 chunks: all logits in bf16; what is fp32 stays within fused kernels."""

    def forward(self, batch: Any) -> tuple[torch.Tensor]:
        hidden = self.model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state.flatten(0, 1)
        head = self.model.get_output_embeddings()
        chunks = [head(chunk) for chunk in hidden.chunk(8)]
        return (torch.stack([_FusedCrossEntropy.apply(chunk) for chunk in chunks]).sum(),)


class _FusedCrossEntropy(torch.autograd.Function):
    """The memory of a compiled cross-entropy: it keeps its logits, and makes their gradient in their own format."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return logits.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


@dataclass(frozen=True, slots=True)
class Row:
    """A published peak, GiB, and what it was measured with."""

    source: Literal["fsdp_qlora", "torchtune"]
    model: str
    method: Any
    rows: int
    width: int
    measured: float
    sharding: Any = "none"
    devices: int = 1
    rank: int = 64
    modules: Any = "all-linear"
    dropout: float = 0.0
    checkpointing: bool = True
    loss: Any = PlainLoss
    moments: float = 4.0
    """Bytes of optimiser state for each trained parameter, all of them bf16 unless said otherwise."""
    gradients_kept: bool = True
    offloaded: bool = False
    """Activations kept in main memory."""
    head_apart: bool = False
    """Embeddings and head sharded by themselves, and so never whole at the same time."""

    @property
    def name(self) -> str:
        more = [self.sharding] * (self.sharding != "none") + ["no checkpointing"] * (not self.checkpointing)
        more += ["fused optimiser"] * (not self.gradients_kept) + ["activations offloaded"] * self.offloaded
        more += ["8-bit AdamW"] * (self.moments == 2)
        return f"{self.source} {self.model} {self.method} {self.rows}x{self.width} {', '.join(more)}".strip()


def answer(model: str, method: str, rows: int, width: int, measured: float, sharding: str = "full") -> Row:
    return Row("fsdp_qlora", model, method, rows, width, measured, sharding, devices=2, dropout=0.1)


def tune(model: str, method: str, width: int, measured: float, **more: Any) -> Row:
    modules = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return Row("torchtune", model, method, 2, width, measured, **{"modules": modules, "loss": ChunkedLoss, **more})


FUSED: dict[str, Any] = {"gradients_kept": False}
ROWS = [
    answer("Llama-2-7B", "qlora", 1, 512, 4.98),
    answer("Llama-2-7B", "qlora", 1, 2048, 5.21),
    answer("Llama-2-7B", "qlora", 4, 2048, 11.22),
    answer("Llama-2-7B", "qlora", 10, 2048, 20.97),
    answer("Llama-2-7B", "lora", 1, 512, 10.24),
    answer("Llama-2-7B", "lora", 1, 2048, 10.22),
    answer("Llama-2-7B", "lora", 4, 2048, 16.14),
    answer("Llama-2-7B", "lora", 6, 2048, 21.35),
    answer("Llama-2-7B", "qlora", 8, 2048, 20.94, "none"),
    answer("Llama-2-7B", "lora", 4, 2048, 22.04, "none"),
    answer("Llama-2-7B", "lora", 10, 2048, 22.69, "full-offload"),
    answer("Llama-2-7B", "qlora", 12, 2048, 22.38, "full-offload"),
    answer("Yi-34B", "qlora", 2, 2048, 23.05),
    answer("Yi-34B", "qlora", 4, 2048, 22.98, "full-offload"),
    answer("Llama-2-70B", "qlora", 2, 2048, 14.92, "full-offload"),
    answer("Mistral-7B-v0.2", "qlora", 12, 2048, 22.54, "full-offload"),
    answer("Mistral-7B-v0.2", "qlora", 1, 24576, 22.54, "full-offload"),
    tune("Llama-3.2-3B", "full", 4096, 60.0, checkpointing=False, loss=UpcastLoss),
    tune("Llama-3.2-3B", "full", 4096, 24.9),
    tune("Llama-3.2-3B", "full", 4096, 23.1, **FUSED),
    tune("Llama-3.2-3B", "full", 4096, 21.8, **FUSED, offloaded=True),
    tune("Llama-3.2-3B", "full", 4096, 17.6, **FUSED, offloaded=True, moments=2),
    tune("Llama-3.2-3B", "lora", 4096, 8.5, offloaded=True),
    tune("Llama-3.2-3B", "qlora", 4096, 4.6, offloaded=True),
    tune("Llama-3.1-8B", "qlora", 2048, 7.4, rank=8),
    tune("Llama-3.1-70B", "lora", 2048, 27.6, rank=16, sharding="full", devices=8),
    tune("Llama-3.1-70B", "full", 2048, 13.9, sharding="full-offload", devices=8, head_apart=True, **FUSED),
]
NOT_EXPRESSIBLE = {
    "torchtune Llama-3.2-3B baseline 25.5": "unpacked data, whose lengths are not published",
    "torchtune Llama-3.2-3B compiled 51.0, chunked 42.9": "torch.compile decides what is kept without checkpointing",
    "torchtune Llama-3.1-8B full 18.9 / 37.4, LoRA 16.2 / 30.3": "two machines, one published configuration, peaks 1.9 "
    "times apart: what differed is not published (and paged optimiser states lie outside torch's allocator)",
    "torchtune Llama-3.1-405B QLoRA 44.8 GB": "the table says batch 2 of packed data, the published configuration "
    "batch 1 of unpacked data, whose lengths are not published. It was a held-out row until its error (+38 %) was seen",
    "torchtune Llama-2-7B LoRA 15.57, 15.87, 15.86, 17.04 GB, QLoRA 9.29": "unpacked data, whose lengths are not "
    "published",
}


def predict(row: Row) -> Memory:
    """The peak without what is to be fitted."""
    bf16 = torch.bfloat16
    lora = None
    if row.method != "full":
        lora = LoraConfig(rank=row.rank, target_modules=row.modules, dropout=row.dropout)
    step = Step(
        row.rows, row.width, lora, bf16, bf16, checkpointing=row.checkpointing, gradients_kept=row.gradients_kept,
        fused=False, loss=row.loss,
    )
    traced = traced_once(row.model, step)
    if row.offloaded:
        traced = _without_boundaries(traced, row)
    memory = memory_of(
        traced, row.method, row.sharding, Numbers(2, 2, 2 if row.gradients_kept else 0, row.moments),
        devices=row.devices, accumulating=False, framework=0,
        fragmentation=0,
    )
    if row.head_apart:
        config = CONFIGS[row.model]
        memory = memory.model_copy(update={"temporary": memory.temporary - 2 * config.vocab_size * config.hidden_size})
    return memory


@cache
def traced_once(model: str, step: Step) -> Traced:
    return trace(CONFIGS[model], step)


def _without_boundaries(traced: Traced, row: Row) -> Traced:
    """With each layer's input in main memory, but for the one in use."""
    import dataclasses

    config = CONFIGS[row.model]
    boundaries = 2 * row.rows * row.width * config.hidden_size * (config.num_hidden_layers - 1)
    return dataclasses.replace(
        traced, saved=traced.saved - boundaries, forward=traced.forward - boundaries, late=traced.late - boundaries
    )


def fit(found: list[tuple[Row, Memory]]) -> dict[str, float]:
    """Workspaces (GiB) and fragmentation with the least squared relative error."""
    grid = [(c / 20, f / 100) for c in range(41) for f in range(101)]
    best = min(grid, key=lambda pair: sum((estimate(row, m, *pair) / row.measured - 1) ** 2 for row, m in found))
    return {"framework_gib": best[0], "fragmentation": best[1]}


def estimate(row: Row, memory: Memory, framework: float, fragmentation: float) -> float:
    """GiB. torchtune's figures are of memory in use, fsdp_qlora's of what was reserved."""
    fragments = fragmentation * memory.passing if row.source == "fsdp_qlora" else 0.0
    return framework + (memory.allocated + fragments) / GIB


def run() -> dict[str, Any]:
    """Predictions, constants and errors."""
    found = [(row, predict(row)) for row in ROWS]
    constants = fit(found[::2])
    table = []
    for index, (row, memory) in enumerate(found):
        value = estimate(row, memory, constants["framework_gib"], constants["fragmentation"])
        parts = {name: round(size / GIB, 2) for name, size in memory.model_dump(exclude={"reserved"}).items()}
        table.append({
            "row": row.name, "part": "held out" if index % 2 else "fitted", "measured_gib": round(row.measured, 2),
            "predicted_gib": round(value, 2), "error": round(value / row.measured - 1, 4), "parts_gib": parts,
        })
    return {
        "constants": constants,
        "fitted": _errors(table, "fitted"),
        "held_out": _errors(table, "held out"),
        "rows": table,
        "not_expressible": NOT_EXPRESSIBLE,
    }


def _errors(table: list[dict[str, Any]], part: str) -> dict[str, float]:
    errors = [abs(line["error"]) for line in table if line["part"] == part]
    return {"rows": len(errors), "median_error": round(statistics.median(errors), 4), "worst_error": max(errors)}


if __name__ == "__main__":
    result = run()
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for line in result["rows"]:
        print(f"{line['row']:<75} {line['part']:<9} {line['measured_gib']:>6} {line['predicted_gib']:>6} "
              f"{line['error']:>+7.1%}")
    print(json.dumps({key: result[key] for key in ("constants", "fitted", "held_out")}))
