"""Models to start from, and tuned models to use, to try and to export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from fm.backends.base import Backend
from fm.errors import NotFound, RequestError, Unavailable
from fm.plugins import load
from fm.presets import PRESETS
from fm.request import TaskType
from fm.resolve import cached_hub_models, context_length_of, resolve_model
from fm.run import Run
from fm.types import ModelRef


class TunedModel(Protocol):
    """A model in memory."""

    model: Any
    """The transformers (or PEFT) model, in evaluation mode."""
    tokenizer: Any
    """The tokenizer that it was trained with."""

    def generate(self, prompt: str, **options: Any) -> str:
        """The text with which the model goes on from `prompt`."""

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The model's answer to a conversation."""


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """A model that `create` can start from. `max_context_length` is in tokens; None where the model doesn't say."""

    name: str
    display_name: str
    max_context_length: int | None
    kind: Literal["preset", "registered", "hub"]


def available_models(backend: Backend) -> list[AvailableModel]:
    """Presets, registered models (each once, under its name), and the models in the local Hugging Face cache."""
    found = [
        AvailableModel(preset.name, preset.display_name, preset.max_context_length, "preset")
        for preset in PRESETS.values()
    ]
    for version in {version.name: version for version in reversed(backend.models.list())}.values():
        base = version.base if version.kind == "adapter" else None
        ref = ModelRef(kind="registered", name=version.ref, path=version.path, adapter_of=base)
        found.append(AvailableModel(version.name, version.ref, context_length_of(ref), "registered"))
    for name, folder in cached_hub_models().items():
        ref = ModelRef(kind="hub", name=name, path=str(folder))
        found.append(AvailableModel(name, name.split("/")[-1], context_length_of(ref), "hub"))
    return found


def open_for_use(model: str | Path | Run, *, device: str, backend: Backend) -> TunedModel:
    """See `fm.load`."""
    folder, base = model_folders(model, backend)
    return cast(TunedModel, load("parts", "open_model")(folder, base_path=base, device=device))


def model_folders(model: str | Path | Run, backend: Backend) -> tuple[Path, Path | None]:
    """The local folder with a model's files, and that of its base where it is an adapter.

    Raises:
        NotFound: there is no such model, or the run has registered none.
        RequestError: a preset, which has no weights before it is trained.
        Unavailable: the files are not on this machine.
    """
    if isinstance(model, Run):
        if not model.registered_model:
            raise NotFound(
                f"run {model.name} has registered no model; it is {model.status.value}",
                hint="wait until it is COMPLETED; only runs with register_to register one",
            )
        backend, model = model.backend, model.registered_model
    ref = resolve_model(str(model.absolute()) if isinstance(model, Path) else model, backend)
    return _local(ref, backend), _local(ref.adapter_of, backend) if ref.adapter_of else None


def _local(ref: ModelRef, backend: Backend) -> Path:
    if ref.kind == "registered":
        return backend.models.open(ref.name)
    if ref.kind == "preset":
        raise RequestError(
            f"{ref.name} has no weights before it is trained", field="model", hint="train it, then load the result"
        )
    if ref.path is None and ref.kind == "hub":
        ref = resolve_model(ref.name, backend)  # it may have been fetched since
    if ref.path is None:
        raise Unavailable(f"model {ref.name} is not on this machine", hint=f"hf download {ref.name}")
    return Path(ref.path)


def export_model(model: str | Path | Run, out: Path, *, merge: bool, backend: Backend) -> Path:
    """Writes a model to the folder `out` as transformers reads it; with `merge`, an adapter becomes a whole model.

    Raises:
        Conflict: `out` holds something already.
    """
    folder, base = model_folders(model, backend)
    return cast(Path, load("parts", "export_model")(folder, base, out, merge=merge))


def preview_rows(
    path: str, model: str, *, backend: Backend, task_type: str, rows: int, context_length: int | None, train_on: str
) -> list[list[tuple[str, bool]]]:
    """The first rows of the data as `model` would see them, each in stretches of text that are trained or not."""
    from fm.data import locate

    return cast(
        "list[list[tuple[str, bool]]]",
        load("parts", "preview")(
            resolve_model(model, backend), locate(path, field="path"), TaskType(task_type.upper()),
            rows=rows, context_length=context_length, train_on=train_on,
        ),
    )
