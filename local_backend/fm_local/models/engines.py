"""What vLLM asks of an adapter that it serves on its base. A merged model is one as any other."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from fm_local.models.load import read_adapter_config

_USUAL_RANK, _MOST_RANK = 16, 512
"""The highest that it takes unless it is started with a higher `--max-lora-rank`, and the highest that this may be
(vllm/config/lora.py, version 0.12)."""

_MATRICES = tuple(f".lora_{kind}{side}" for kind in ("", "embedding_") for side in ("A", "B"))
_MERGE = "export it with --merge to serve it there"


def how_to_serve(folder: Path) -> str | None:
    """What stands between the adapter in `folder`, as it lies there, and vLLM, and what to do; None if nothing does.

    It takes low-rank matrices alone, with alpha / rank or alpha / sqrt(rank) as their scale
    (vllm/lora/peft_helper.py and lora_model.py).
    """
    config = read_adapter_config(folder)
    if config.get("use_dora"):
        return f"vLLM knows no DoRA: {_MERGE}"
    if config.get("trainable_token_indices") or config.get("modules_to_save"):
        return f"vLLM takes no trained rows of embeddings and head: {_MERGE}"
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    if strange := [name for name in names if not name.removesuffix(".weight").endswith(_MATRICES)]:
        return f"vLLM takes low-rank matrices only, and this adapter has {strange[0]}: {_MERGE}"
    if (rank := config["r"]) > _MOST_RANK:
        return f"vLLM takes no rank above {_MOST_RANK}, and this adapter's is {rank}: {_MERGE}"
    return f"start vLLM with --max-lora-rank of {rank} or more for this adapter" if rank > _USUAL_RANK else None
