"""The honest search: TRL's best options, and the shape in which a bare loop is fastest, by method and data.

In stages, each from the best of the one before, because the full grid would take a day on two cores. Every trial is
written down, failures too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.lab import Contender, Failed, Lab

Trial = dict[str, Any]

PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
_GROUPED = {"train_sampling_strategy": "group_by_length"}
_STEPS = 20
"""After which a trial ends whose steps are drawn at random, and so alike. Steps by length begin with the longest, and
take a whole pass."""
_ROWS = (16, 8)
"""Of a micro-batch, as many of which make a step as it takes."""
_PACKINGS = (("bfd", 512), ("bfd", 1024), ("bfd_split", 256), ("bfd_split", 512), ("wrapped", 512))
"""How rows are filled, and their tokens. What is longer than a row loses its end by "bfd", and goes on in another by
the others."""


def trl_defaults(batch: int) -> dict[str, Any]:
    """TRL's own, at the common effective `batch`: 8 examples on the device are its default."""
    return {"per_device_train_batch_size": 8, "gradient_accumulation_steps": batch // 8}


def hf_grouped(batch: int) -> dict[str, Any]:
    """Hugging Face's trainer with its defaults and batches by length."""
    return {"per_device_train_batch_size": 16, "gradient_accumulation_steps": batch // 16, **_GROUPED}


def _stages(
    device: str, precision: str, method: str, batch: int, tokens_per_step: float
) -> list[list[dict[str, Any]]]:
    """Changes to try, stage by stage; the first stage holds whole configurations."""
    attentions = ["sdpa", "eager"] if device == "cpu" else ["sdpa", "flash_attention_2", "flex_attention"]
    plain = PLAIN | {"bf16": precision == "bf16"}
    first = [
        plain | by
        | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": batch // rows, "attention": attention}
        for rows in _ROWS
        for attention in attentions
        for by in ({}, _GROUPED)
    ]
    arranging: list[dict[str, Any]] = [{"padding_free": True, "max_length": None}]
    for strategy, length in _PACKINGS:
        # The rows whose examples in a step are the nearest to the others' in number: one after the other, or at once.
        count = max(1, round(tokens_per_step / length))
        packed = {"packing": True, "packing_strategy": strategy, "max_length": length}
        for rows, times in dict.fromkeys([(1, count), (count, 1)]):
            arranging.append(packed | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": times})
    other: dict[str, Any] = {"bf16": precision != "bf16"}
    numbers = [other, {"dataloader_num_workers": 2}, {"gradient_checkpointing": True}]
    numbers += [{"attention": attention} for attention in attentions]
    if method != "full" and precision == "bf16":
        # Loaded in bf16, as ftctl keeps what is frozen. Full training would then have no fp32 weights.
        numbers.append({"dtype": "bfloat16"})
    compiled: list[dict[str, Any]] = [{"torch_compile": True}, {"use_liger_kernel": True}] if device == "cuda" else []
    return [first, arranging, numbers + compiled]


def search_trl(lab: Lab, method: str, data: str) -> Iterator[Trial]:
    """Trial after trial of TRL's options."""
    trials: list[Trial] = []
    base: dict[str, Any] = {}
    for stage in _stages(lab.device, lab.precision, method, lab.size.batch, lab.tokens_per_step(data)):
        for options in (base | change for change in stage):
            if options != base:
                trials.append(_try(lab, Contender("trl", options), method, data))
                yield trials[-1]
        base = best(trials)


def search_bare(lab: Lab, method: str, data: str) -> Iterator[Trial]:
    """The same for the bare loop: rows and length of its micro-batches, and the attention."""
    cpu = lab.device == "cpu"
    shapes = ((32, 32), (16, 64), (8, 128)) if cpu else ((64, 256), (16, 1024), (8, 2048), (4, 2048))
    for rows, length in shapes:
        for attention in ("eager", "sdpa") if cpu else ("sdpa",):
            options = {"rows": rows, "length": length, "attention": attention}
            yield _try(lab, Contender("bare", options), method, data)


def best(trials: list[Trial]) -> dict[str, Any]:
    """The options of the quickest trial."""
    return dict(max(trials, key=lambda trial: float(trial["tokens_per_second"]))["options"])


def _try(lab: Lab, contender: Contender, method: str, data: str) -> Trial:
    trial: Trial = {"options": contender.options, "tokens_per_second": 0.0}
    by_length = _GROUPED.items() <= contender.options.items() and not contender.options.get("packing")
    try:
        result = lab.run(contender, method, data, seed=1, steps=None if by_length else _STEPS)
    except Failed as error:
        trial["failed"] = str(error).strip().splitlines()[-1][:200]
    else:
        trial["tokens_per_second"] = round(result.tokens_per_second(lab.clock), 1)
        trial["peak_mb"] = round(result.peak_bytes / 1e6)
        lab.discard(result)
    print(f"  {method} {data} {contender.worker} {trial}", flush=True)
    return trial
