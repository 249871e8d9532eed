"""A registered model as a folder that transformers, vLLM and others load without ftctl."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from fm.creation import RequestWarning
from fm.errors import Conflict, FMError
from fm.files import atomic_folder, read_manifest, seal, write_json
from fm.layout import MANIFEST
from fm_local.models.base import check_base
from fm_local.models.engines import how_to_serve
from fm_local.models.load import ADAPTER_CONFIG, is_adapter, load_adapted, load_causal_lm, saved_dtype_of

_MOST_DIVERGENCE = 1e-3
"""Largest difference of any logit between merged and unmerged, in fp32, as a share of the largest logit."""
_MOST_ROUNDING = 0.05
"""The same between what was trained and the saved files, whose numbers are rounded to 8 or 11 bits where the base's
are. In models of random weights it was below 0.02."""
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def export(model_path: Path, base_path: Path | None, out: Path, *, merge: bool) -> Path:
    """Writes the model in `model_path` to the new folder `out`, whole or not at all.

    A whole model is copied. An adapter is copied with the path of its base in its configuration, or with `merge` made
    one with its base, in the base's own number format; the merged model is compared with the unmerged one, and so is
    what is read back from the files. Warns of an adapter that vLLM would refuse.

    Raises:
        Conflict: `out` exists and is not empty.
        RequestError: the base is missing, or does not fit.
        FMError: the merged model computes something else.
        DiskFull: nothing of `out` remains.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} exists already", hint="give a new folder, or remove that one")
    with atomic_folder(out) as unfinished:
        adapter = is_adapter(model_path)
        skipped = {MANIFEST} | ({ADAPTER_CONFIG} if merge else set())
        for file in sorted(model_path.iterdir()):
            if file.name not in skipped and not (adapter and merge and file.name.endswith(_WEIGHTS)):
                shutil.copyfile(file, unfinished / file.name)
        if adapter and merge:
            _merge(model_path, base_path, unfinished)
        elif adapter and base_path is not None:
            config = json.loads((model_path / ADAPTER_CONFIG).read_text())
            write_json(unfinished / ADAPTER_CONFIG, config | {"base_model_name_or_path": str(base_path)})
        if adapter and not merge:
            seal(unfinished, kind="adapter", base_digest=(read_manifest(model_path) or {}).get("base_digest"))
        else:
            seal(unfinished, kind="full")
    if adapter and not merge and (remark := how_to_serve(out)):
        warnings.warn(remark, RequestWarning, stacklevel=2)
    return out


def _merge(adapter_path: Path, base_path: Path | None, out: Path) -> None:
    if base_path is not None:
        check_base(adapter_path, base_path)
    model = load_adapted(adapter_path, base_path, dtype=torch.float32).eval()
    before = _logits(model)
    _untie_if_adapted(model)
    merged = model.merge_and_unload()
    _compare(before, merged, f"merging {adapter_path}", _MOST_DIVERGENCE)
    if (out / "generation_config.json").exists():
        # The base's own would not stop at the end of a turn that the adapter was taught.
        merged.generation_config = GenerationConfig.from_pretrained(out)
    assert base_path is not None, "load_adapted refuses an adapter without its base"
    # With this, DeepSpeed is imported if it is installed, and speaks on the standard output, which is for data.
    dtype = saved_dtype_of(base_path)
    with redirect_stdout(sys.stderr):
        merged.to(dtype).save_pretrained(out)
    del model, merged  # of a large model, memory holds one
    bound = _MOST_DIVERGENCE if dtype == torch.float32 else _MOST_ROUNDING
    _compare(before, load_causal_lm(out, dtype=torch.float32).eval(), f"saving what {adapter_path} merges to", bound)


def _compare(expected: torch.Tensor, model: Any, what: str, bound: float) -> None:
    found = _logits(model)
    worst = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    if not worst <= bound:
        raise FMError(
            f"{what} changed its logits by up to {worst:.2%}", hint="export without merge, and report this"
        )


def _untie_if_adapted(model: Any) -> None:
    """Gives head and embeddings weights of their own if only one of them has an adapter, which merging adds to it."""
    whole = model.get_base_model()
    head, embeddings = whole.get_output_embeddings(), whole.get_input_embeddings()
    adapted = [hasattr(layer, "base_layer") for layer in (head, embeddings)]
    if not (whole.config.get_text_config().tie_word_embeddings and any(adapted)):
        return
    layer = head.base_layer if adapted[0] else head
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    whole.config.get_text_config().tie_word_embeddings = False


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(32, device=model.device)[None] * 7 % model.config.get_text_config().vocab_size
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()
