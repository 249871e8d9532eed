"""The forms of adapters, and short trainings of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fm.types import ModelRef
from support.models import examples, make_job, run

FORMS: dict[str, dict[str, Any]] = {
    "qlora": {"method": "qlora"},
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "qdora": {"method": "qlora", "lora": {"use_dora": True, "use_rslora": True}},
    "new-tokens": {"new_tokens": ["<a>", "<b>"]},
    "qlora-new-tokens": {"method": "qlora", "new_tokens": ["<a>"]},
}


def trained(root: Path, base: Path | ModelRef, **request: Any) -> Path:
    """The final folder of a short training."""
    common = {"rows": examples(8), "training_duration": "4ba", "method": "lora", "learning_rate": 1e-2}
    job, folder = make_job(root, base=base, **{**common, **request})
    assert run(job, folder)
    return folder.final


def registered(adapter: Path, base: Path) -> ModelRef:
    return ModelRef(
        kind="registered", name="a.b.c/1", path=str(adapter), adapter_of=ModelRef(kind="path", name="b", path=str(base))
    )


def logits_of(language_model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = language_model.eval()(ids).logits.float()
    return found
