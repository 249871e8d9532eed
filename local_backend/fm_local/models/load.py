"""Opening models from local folders: safetensors only, no code of the model's own, no network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from fm.errors import NotFound, RequestError, Unsupported
from fm_local.models.generating import continue_tokens, prompt_tokens
from fm_local.models.new_tokens import make_room, tokens_needed
from fm_local.models.tokenizer import Message, chat_template_of, load_tokenizer, stop_token_ids
from fm_local.models.weights import load_tensors, refuse_pickles

ADAPTER_CONFIG = "adapter_config.json"

# PEFT imports bitsandbytes wherever it is installed, which then names a package that would make generating quicker.
getLogger("bitsandbytes").setLevel(ERROR)


def is_adapter(path: Path) -> bool:
    """Whether the folder holds an adapter and not a whole model."""
    return (path / ADAPTER_CONFIG).is_file()


def load_causal_lm(path: Path, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """The causal language model in folder `path`, on CPU, in `dtype` (default: as its configuration says).

    `options` go to transformers' `from_pretrained`.

    Raises:
        NotFound: there is no model in that folder.
        RequestError: pickled weights only, or weights that do not fit the configuration.
        Unsupported: transformers does not know the architecture, or the model brings code of its own.
    """
    if not (path / "config.json").is_file():
        if is_adapter(path):
            raise RequestError(
                f"{path} holds an adapter, not a whole model", hint="`ftctl models export --merge` it first"
            )
        raise NotFound(
            f"no model in {path}: config.json is missing", hint="give a folder as save_pretrained(…) writes it"
        )
    refuse_pickles(path)
    try:
        with _no_bars():
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype or "auto",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (ValueError, KeyError) as error:
        raise Unsupported(
            f"the model in {path} can't be opened: {error}",
            field="model",
            hint="use an architecture that transformers has built in; code that a model brings along is never run",
        ) from None
    except OSError as error:
        raise RequestError(f"the weights in {path} can't be read: {error}", field="model") from None
    if wrong := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
        raise RequestError(
            f"{len(wrong)} weights of the model in {path} are missing or of another shape, such as {wrong[0]}",
            field="model",
            hint="config.json and the weights must belong together",
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
                field="custom_weights_path",
                hint="the weights must be of the architecture that `model` has",
            )
    model.load_state_dict(given, strict=False)
    model.tie_weights()


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The adapter's configuration, as PEFT keeps it."""
    return dict(json.loads((path / ADAPTER_CONFIG).read_text()))


def saved_dtype_of(folder: Path) -> torch.dtype:
    """The number format that a saved model's configuration names; fp32 if it names none."""
    config = json.loads((folder / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(name), torch.float32)


class TunedModel:
    """A model that writes, with its tokenizer: what `fm.load` gives.

    Attributes:
        model: the transformers (or PEFT) model, in evaluation mode.
        tokenizer: the tokenizer that it was trained with.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._template = chat_template_of(tokenizer)
        self._stop = stop_token_ids(tokenizer, self._template)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """What the model writes after `prompt`, which is given to it as it stands.

        Args:
            max_new_tokens: the most tokens to write; fewer if the model ends by itself.
            temperature: 0 for the likeliest token each time; 1 for the model's own distribution.
            top_p: sample from the likeliest tokens that together have this probability.
            seed: the same seed gives the same text; None for another each time.
        """
        return self._write(prompt, max_new_tokens, temperature, top_p, seed)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The assistant's answer to a conversation, or to one user's turn given as text; otherwise as `generate`."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._write(turns, max_new_tokens, temperature, top_p, seed)

    def _write(
        self, prompt: str | list[Message], max_new_tokens: int, temperature: float, top_p: float, seed: int | None
    ) -> str:
        tokens, _ = continue_tokens(
            self.model,
            prompt_tokens(self.tokenizer, prompt, self._template),
            stop=self._stop,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def __repr__(self) -> str:
        return f"TunedModel({type(self.model).__name__} on {self.model.device})"


def open_model(model_path: Path, *, base_path: Path | None = None, device: str = "auto") -> TunedModel:
    """Opens what a run has made: the whole model in `model_path`, or the adapter there on the base in `base_path`.

    Args:
        device: "auto" for the machine's best, or a name that torch knows, such as "cpu" or "cuda:1".

    Raises:
        RequestError: an adapter without its base, pickled weights, or weights that don't fit.
        NotFound: there is no model.
    """
    model = load_adapted(model_path, base_path) if is_adapter(model_path) else load_causal_lm(model_path)
    where = _best_device() if device == "auto" else device
    words = model_path if (model_path / "tokenizer_config.json").is_file() or base_path is None else base_path
    return TunedModel(model.to(where), load_tokenizer(words))


def load_adapted(adapter_path: Path, base_path: Path | None, *, dtype: torch.dtype | None = None) -> Any:
    """PEFT's model of the adapter on its base.

    Raises:
        RequestError: the base is not given, or the adapter was made for another.
    """
    from peft import PeftModel

    if base_path is None:
        raise RequestError(
            f"{adapter_path} is an adapter of {read_adapter_config(adapter_path).get('base_model_name_or_path')}",
            field="model",
            hint="give that base as base_path",
        )
    refuse_pickles(adapter_path)
    base = load_causal_lm(base_path, dtype=dtype)
    make_room(base, tokens_needed(read_adapter_config(adapter_path)))
    try:
        with warnings.catch_warnings():
            # PEFT's business with transformers, of which its user can do nothing.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return PeftModel.from_pretrained(base, str(adapter_path))
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            f"the adapter in {adapter_path} does not fit the base in {base_path}: {str(error).splitlines()[0]}",
            field="model",
            hint="use the base that adapter_config.json names",
        ) from None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Within it transformers draws no progress bars, which would stand between a question and its answer."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
