"""What vLLM asks of an adapter that it serves on its base. A merged model is one as any other."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from fm_local.models.load import read_adapter_config

_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be from its default on (vllm/config/lora.py, version 0.12)."""

_MATRICES = tuple(f".lora_{kind}{side}" for kind in ("", "embedding_") for side in ("A", "B"))
_MERGE = "export it with --merge to serve it there"


def how_to_serve(folder: Path) -> str | None:
    """What keeps vLLM from serving the adapter in `folder` as it lies there, and what to do; None if nothing known.

    It takes low-rank matrices alone, with alpha / rank or alpha / sqrt(rank) as their scale
    (vllm/lora/peft_helper.py and lora_model.py).
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return None  # one from elsewhere, in several files
    config = read_adapter_config(folder)
    if config.get("use_dora"):
        return f"vLLM knows no DoRA: {_MERGE}"
    if config.get("trainable_token_indices") or config.get("modules_to_save"):
        return f"vLLM takes no trained rows of embeddings and head: {_MERGE}"
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
    if strange := [name for name in names if not name.removesuffix(".weight").endswith(_MATRICES)]:
        return f"vLLM takes low-rank matrices only, and this adapter has {strange[0]}: {_MERGE}"
    rank = config["r"]
    enough = next((most for most in _RANKS if most >= rank), None)
    if enough is None:
        return f"vLLM takes no rank above {_RANKS[-1]}, and this adapter's is {rank}: {_MERGE}"
    return f"start vLLM with --max-lora-rank {enough} or more for this adapter" if enough > _RANKS[0] else None
