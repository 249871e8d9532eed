"""Opening models from local folders: safetensors only, no code of the model's own, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fm.errors import NotFound, RequestError, Unsupported
from fm_local.models.weights import load_tensors, refuse_pickles

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(path: Path) -> bool:
    """Whether the folder holds an adapter and not a whole model."""
    return (path / ADAPTER_CONFIG).is_file()


def load_causal_lm(path: Path, *, dtype: torch.dtype | None = None) -> Any:
    """The causal language model in folder `path`, on CPU, in `dtype` (default: as its configuration says).

    Raises:
        NotFound: there is no model in that folder.
        RequestError: pickled weights only, or weights that do not fit the configuration.
        Unsupported: transformers does not know the architecture, or the model brings code of its own.
    """
    if not (path / "config.json").is_file():
        if is_adapter(path):
            raise RequestError(f"{path} holds an adapter, not a whole model", hint="`ftctl models export --merge` it first")
        raise NotFound(f"no model in {path}: config.json is missing", hint="give a folder as save_pretrained(…) writes it")
    refuse_pickles(path)
    try:
        # Without this the weights' absence and code of the model's own give errors that name neither.
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False,
            local_files_only=True, output_loading_info=True,
        )
    except (ValueError, KeyError) as error:
        raise Unsupported(
            f"the model in {path} can't be opened: {error}", field="model",
            hint="use an architecture that transformers has built in; code that a model brings along is never run",
        ) from None
    except OSError as error:
        raise RequestError(f"the weights in {path} can't be read: {error}", field="model") from None
    if wrong := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
        raise RequestError(
            f"{len(wrong)} weights of the model in {path} are missing or of another shape, such as {wrong[0]}",
            field="model", hint="config.json and the weights must belong together",
        )
    return model


def load_custom_weights(model: Any, path: Path) -> None:
    """Replaces all weights of `model` by those at `path`.

    Raises:
        RequestError: they are not of the same architecture.
    """
    given = load_tensors(path)
    wanted = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(wanted) - set(given) - tied)
    strange = sorted(set(given) - set(wanted))
    shaped = sorted(name for name in set(given) & set(wanted) if given[name].shape != wanted[name].shape)
    for problem, names in (("lacks", missing), ("has unknown", strange), ("has of another shape", shaped)):
        if names:
            raise RequestError(
                f"custom_weights_path {path} {problem} {names[0]}" + (f" and {len(names) - 1} more" * (len(names) > 1)),
                field="custom_weights_path", hint="the weights must be of the architecture that `model` has",
            )
    model.load_state_dict(given, strict=False)
    model.tie_weights()


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The adapter's configuration, as PEFT keeps it."""
    return dict(json.loads((path / ADAPTER_CONFIG).read_text()))
