"""The verbs about models: what there is to start from, and opening one to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fm.backends.base import Backend
from fm.context import current
from fm.run import Run

if TYPE_CHECKING:
    from fm.models import AvailableModel, TunedModel


def get_models(*, backend: str | Backend | None = None) -> list[AvailableModel]:
    """What `model=` can name without a download: presets, registered models, and the local Hugging Face cache."""
    from fm.models import available_models

    return available_models(current(backend))


def load(
    model: str | Path | Run, *, device: str = "auto", backend: str | Backend | None = None
) -> TunedModel:
    """Opens a model to be used: ``fm.load("catalog.schema.model").chat([...])``.

    Args:
        model: a registered model, a folder, a hub name, or a run that has registered one.
        device: "auto" (the best there is), "cpu", "cuda" or "mps".

    Raises:
        NotFound: there is no such model, or the run has registered none.
        MissingExtra: torch and its companions are not installed.
    """
    from fm.models import open_for_use

    return open_for_use(model, device=device, backend=current(backend))
