"""What ``model=`` means: a path, a registered name, a preset or a hub name, looked for in this order."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fm.backends.base import Backend
from fm.errors import Conflict, NotFound, RequestError, Unavailable, Unsupported
from fm.presets import PRESETS
from fm.types import ModelRef

_REGISTERED = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+(@[\w-]+|/[0-9]+)?")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
_FORMS = "a folder (./my-model), a registered model (catalog.schema.model), a preset (fm/tiny-llama), or org/name"
_ELSEWHERE = "train from a registered model (catalog.schema.model), a preset (fm/tiny-llama) or a hub name (org/name)"
_HUB_TRIES = 2
_HUB_SECONDS = 5.0


def resolve_model(model: str, backend: Backend, *, folders: bool = True) -> ModelRef:
    """Finds what `model` names, and where its weights are.

    With `folders` off no folder is meant by any text: the caller's are not those of this machine.

    Raises:
        RequestError: the text names no model, or its folder lacks something that training needs.
        NotFound: well written, but there is none of that name.
        Unavailable: only the model hub could tell, and it can't be asked.
    """
    if is_path(model):
        if not folders:
            raise Unsupported(f"model {model!r} is a folder, which lies elsewhere", field="model", hint=_ELSEWHERE)
        return _from_folder(Path(model).expanduser().absolute(), backend)
    if _REGISTERED.fullmatch(model):
        return _registered(model, backend)
    if model in PRESETS:
        return ModelRef(kind="preset", name=model)
    if folders and Path(model).is_dir():
        raise RequestError(f"model {model!r} could be a folder or a hub name", field="model", hint=f"write ./{model}")
    if _HUB.fullmatch(model) and not model.startswith("fm/"):
        return _from_hub(model, backend, folders=folders)
    raise NotFound(f"there is no model {model!r}", hint=_did_you_mean(model, backend) or f"write {_FORMS}")


def is_path(model: str) -> bool:
    """Whether `model` means a folder, by how it is written."""
    return model.startswith(("./", "../", "/", "~")) or model in (".", "..")


def check_model_folder(folder: Path) -> str:
    """Returns "full" or "adapter" if `folder` holds a model that can be loaded.

    Raises:
        RequestError: something is missing; says what, and how to get it.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise RequestError(f"model {folder} {what}", field="model", hint="pass the folder that holds config.json")
    weights = any(folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").is_file():
        if not weights:
            raise _lacks(folder, "adapter_model.safetensors", "save the adapter again with save_pretrained(...)")
        return "adapter"
    if not _read_json(folder / "config.json").get("model_type"):
        raise _lacks(folder, "a config.json that names a model_type", "pass a folder as save_pretrained(...) writes it")
    if not weights:
        old = " (other weight formats can run code when loaded)" if any(folder.glob("*.bin")) else ""
        raise _lacks(
            folder, f"weights as *.safetensors{old}", "convert: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(folder)",
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _lacks(folder, "a tokenizer", "tokenizer.save_pretrained(folder) writes it")
    return "full"


def context_length_of(model: ModelRef) -> int | None:
    """Tokens that the model can attend to; None where its configuration isn't here or doesn't say."""
    if preset := PRESETS.get(model.name):
        return preset.max_context_length
    base = model.adapter_of or model
    if base.kind == "preset" or not base.path:
        return context_length_of(base) if base is not model else None
    config = _read_json(Path(base.path) / "config.json")
    most = config.get("max_position_embeddings") or config.get("n_positions")
    return most if isinstance(most, int) and most > 0 else None


def shape_of(model: ModelRef) -> tuple[int, int] | None:
    """Width and depth of the base: numbers of each token's state, and layers. None where its configuration isn't here
    or names them otherwise."""
    base = model.adapter_of or model
    if preset := PRESETS.get(base.name):
        return preset.hidden_size, preset.layers
    config = _read_json(Path(base.path) / "config.json") if base.path else {}
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    width, layers = (
        config.get(name) or config.get(older)
        for name, older in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"))
    )
    return (width, layers) if isinstance(width, int) and isinstance(layers, int) else None


def refuse_quantised(model: ModelRef) -> None:
    """Refuses to train on weights that were saved quantised (GPTQ, AWQ, FP8, bitsandbytes …), where that is known.

    Raises:
        RequestError: they are. An adapter could be merged into nothing but the weights that they were made from.
    """
    base = model.adapter_of or model
    quantised = _read_json(Path(base.path) / "config.json").get("quantization_config") if base.path else None
    if quantised is not None:
        how = (quantised.get("quant_method") if isinstance(quantised, dict) else None) or "an unknown way"
        raise RequestError(
            f"the weights of {base.name} are quantised already ({how})",
            field="model",
            hint="use the model that it was made from; method='qlora' quantises that in memory",
        )


def cached_hub_models() -> dict[str, Path]:
    """The whole models in the local Hugging Face cache: their folder by their name."""
    found = {}
    for folder in sorted(_hub_cache().glob("models--*--*")):
        name = "/".join(folder.name.split("--")[1:3])
        if snapshot := _snapshot(name):
            found[name] = snapshot
    return found


def _registered(model: str, backend: Backend) -> ModelRef:
    try:
        version = backend.models.get(model)
    except NotFound as error:
        raise NotFound(error.message, hint=_did_you_mean(model, backend) or error.hint) from None
    base = version.base if version.kind == "adapter" else None
    if base and base.kind == "registered":
        base = _placed(base, base.team or version.team, backend)
    return ModelRef(kind="registered", name=version.ref, path=version.path, adapter_of=base, team=version.team)


def _placed(base: ModelRef, team: str, backend: Backend) -> ModelRef:
    """`base`, a registered model of `team`, with its folder on this machine, which may not be where it was trained."""
    try:
        version = backend.models.get(base.name)
    except NotFound:  # of a granted model, it may be granted or not
        return base.model_copy(update={"team": team, "path": None})
    return base.model_copy(update={"team": team, "path": version.path if version.team == team else None})


def _from_folder(folder: Path, backend: Backend, *, folders: bool = True) -> ModelRef:
    base = _base_of(folder, backend, folders=folders) if check_model_folder(folder) == "adapter" else None
    return ModelRef(kind="path", name=str(folder), path=str(folder), adapter_of=base)


def _base_of(adapter: Path, backend: Backend, *, folders: bool) -> ModelRef:
    name = _read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise _lacks(adapter, "its base model's name in adapter_config.json", "set base_model_name_or_path there")
    if folders and (Path(name) / "adapter_config.json").is_file():
        hint = "merge that one into its base first: ftctl models export --merge"
        raise Conflict(f"model {adapter} is an adapter of the adapter {name}", hint=hint)
    return resolve_model(name, backend, folders=folders)


def _from_hub(name: str, backend: Backend, *, folders: bool) -> ModelRef:
    if snapshot := _snapshot(name):
        base = _from_folder(snapshot, backend, folders=folders).adapter_of
        return ModelRef(kind="hub", name=name, path=str(snapshot), adapter_of=base)
    if not backend.trains_here:
        return ModelRef(kind="hub", name=name)
    remedy = f"where there is a network: `hf download {name} --local-dir my-model`, then pass model='./my-model'"
    near = _did_you_mean(name, backend)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise Unavailable(
            f"model {name!r} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it", hint=near or remedy
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Unavailable(
            f"model {name!r} is not on this machine, and huggingface_hub is not installed", hint=near or remedy
        )
    _ask_hub(name, near, remedy)
    return ModelRef(kind="hub", name=name)


def _ask_hub(name: str, near: str, remedy: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    for last in range(1, _HUB_TRIES + 1):
        try:
            HfApi().model_info(name, timeout=_HUB_SECONDS)
            return
        except GatedRepoError as error:
            raise RequestError(
                f"model {name!r} is gated", field="model",
                hint=f"accept its licence at https://huggingface.co/{name} and log in with `hf auth login`",
            ) from error
        except RepositoryNotFoundError as error:
            raise NotFound(f"the hub has no model {name!r}", hint=near or f"write {_FORMS}") from error
        except Exception as error:  # whatever the HTTP client of that version raises: the hub can't be asked
            if last == _HUB_TRIES:
                raise Unavailable(
                    f"model {name!r} is not on this machine, and the hub can't be reached: {error}"[:300],
                    hint=near or remedy,
                ) from error


def _hub_cache() -> Path:
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"


def _snapshot(name: str) -> Path | None:
    """The cached folder of the hub model `name` that can be loaded: that of its main branch, else the newest."""
    folder = _hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text().strip()
        snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        revision, snapshots = "", sorted((folder / "snapshots").glob("*"))
    for snapshot in sorted(snapshots, key=lambda path: path.name != revision):
        try:
            check_model_folder(snapshot)
        except RequestError:  # a download that was broken off, or another kind of repository
            continue
        return snapshot
    return None


def _did_you_mean(model: str, backend: Backend) -> str:
    names = [*PRESETS, *cached_hub_models(), *{version.name for version in backend.models.list()}]
    bare = {name.lower(): name for name in names} | {re.split("[/.]", name)[-1].lower(): name for name in names}
    key: Callable[[str], Any] = lambda text: difflib.get_close_matches(text, bare, n=1, cutoff=0.75)  # noqa: E731
    wanted = re.sub(r"(@[^@]*|(?<=\w)/[0-9]+)$", "", model.lower())
    near = key(wanted) or key(re.split("[/.]", wanted)[-1])
    return f"did you mean {bare[near[0]]}?" if near else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _lacks(folder: Path, what: str, hint: str) -> RequestError:
    return RequestError(f"model folder {folder} lacks {what}", field="model", hint=hint)
