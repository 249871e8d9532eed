"""From turns to figures: medians and spreads, ratios by turn, model-FLOPs utilisation, a table, a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.clock import Result, spread
from training.task import Size

PEAK_FLOPS = 989e12
"""Dense bf16 of an H100 or H200 SXM, by NVIDIA's data sheet; utilisation is not reported for a CPU."""
SMOOTHED = 10
Turn = dict[str, Any]


def turn_of(result: Result, loss: float | None, clock: str) -> Turn:
    """The figures of one turn of one contender."""
    return {
        "tokens_per_second": result.tokens_per_second(clock),
        "peak_mb": result.peak_bytes / 1e6,
        "first_step_s": result.first_step_s,
        "held_out_loss": loss,
        "curve": [(round(step.examples, 1), round(step.loss, 4)) for step in result.steps],
    }


def summary(turns: dict[str, list[Turn]], size: Size, device: str, cell: str) -> dict[str, Any]:
    """By contender: median and spread of each figure, ours over it turn by turn, and the mean of the loss curves."""
    figures: dict[str, Any] = {}
    for name, entries in turns.items():
        entry: dict[str, Any] = {}
        for key in ("tokens_per_second", "peak_mb", "first_step_s", "held_out_loss"):
            if entries[0][key] is not None:
                entry[key] = {what: round(value, 4) for what, value in spread([turn[key] for turn in entries]).items()}
        if name != "ours":
            pairs = list(zip(turns["ours"], entries, strict=True))
            entry["ours_over_it"] = spread([o["tokens_per_second"] / t["tokens_per_second"] for o, t in pairs])
            if entries[0]["held_out_loss"] is not None:
                entry["our_loss_minus_its"] = spread([o["held_out_loss"] - t["held_out_loss"] for o, t in pairs])
        if name != "ceiling":
            # Packed rows make steps of unequal examples, so each turn may have its own number of steps.
            points = list(zip(*(turn["curve"] for turn in entries), strict=False))
            means = ([statistics.mean(axis) for axis in zip(*point, strict=True)] for point in points)
            entry["curve"] = [(round(seen, 1), round(loss, 4)) for seen, loss in means]
        if device == "cuda":
            rate = statistics.median(turn["tokens_per_second"] for turn in entries)
            entry["model_flops_utilisation"] = rate * flops_per_token(size, cell.split()[0]) / PEAK_FLOPS
        figures[name] = entry
    return figures


def flops_per_token(size: Size, method: str) -> float:
    """Floating-point operations of forward and backward, 2 for each parameter of a matrix product and token in each
    (PaLM, appendix B), without attention's own. Frozen weights need no gradient: 4 rather than 6 for adapters."""
    kv = size.width * size.kv_heads // size.heads
    layer = 2 * size.width * size.width + 2 * size.width * kv + 3 * size.width * size.inner
    matrices = size.layers * layer + size.width * size.vocabulary
    return (6.0 if method == "full" else 4.0) * matrices


def table(figures: dict[str, Any]) -> str:
    """The comparison in Markdown."""
    lines = [
        "| method, data | contender | real tokens/s | ours over it | peak MB | first step s | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, cells in figures.items():
        for name, entry in cells["contenders"].items():
            rate = _ranged(entry["tokens_per_second"], ",.0f")
            ratio = _ranged(entry.get("ours_over_it"), ".2f")
            loss = _ranged(entry.get("held_out_loss"), ".3f")
            peak, first = entry["peak_mb"]["median"], entry["first_step_s"]["median"]
            lines.append(f"| {cell} | {name} | {rate} | {ratio} | {peak:,.0f} | {first:.1f} | {loss} |")
    return "\n".join(lines)


def _ranged(values: dict[str, float] | None, form: str) -> str:
    if values is None:
        return ""
    return f"{values['median']:{form}} ({values['least']:{form}} to {values['greatest']:{form}})"


def plot(results: Iterable[Path], path: Path) -> None:
    """Training loss by examples seen, a panel for each cell of all files of `results`, for each contender the mean of
    the turns and of `SMOOTHED` steps: a step's loss depends on how long its examples are."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels = [item for result in sorted(results) for item in json.loads(result.read_text()).items()]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=(5 * columns, 4 * lines), sharey="row")
    for axis, (cell, entry) in zip(axes.flat, panels, strict=False):
        axis.set_title(f"{cell}\n{entry['how']['machine']}", fontsize="medium")
        axis.set(xlabel="examples", ylabel="loss (nats per token)")
        for name, contender in entry["contenders"].items():
            if "curve" not in contender:  # the bare loop learns nothing
                continue
            seen, losses = zip(*contender["curve"], strict=True)
            means = [statistics.mean(losses[max(0, end - SMOOTHED) : end]) for end in range(1, len(losses) + 1)]
            axis.plot(seen, means, label=name)
        axis.legend()
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
