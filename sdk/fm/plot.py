"""The loss over the steps: in the terminal by plotext, as a picture by matplotlib. Both are imported here only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.display import one_line
from fm.errors import MissingExtra, NotFound
from fm.files import atomic_writer
from fm.progress import TRAIN_LOSS

if TYPE_CHECKING:
    from fm.run import Run

EVAL_LOSS = "metrics/eval/LanguageCrossEntropy"
_NAMES = {TRAIN_LOSS: "training loss", EVAL_LOSS: "evaluation loss"}

Series = dict[str, list[tuple[int, float]]]


def plot_loss(run: Run, path: Path | None = None) -> Path | None:
    """See `Run.plot`."""
    metrics = run.metrics(list(_NAMES))
    series = {name: points for key, name in _NAMES.items() if (points := metrics.series(key))}
    if not series:
        raise NotFound(f"run {run.name} has no loss yet", hint="wait for its first steps")
    if path is not None:
        figure = _figure(run, series)
        with atomic_writer(path) as file:
            figure.savefig(file, format="png", dpi=120)
        return path
    if _in_notebook():
        from IPython.display import display  # type: ignore[import-not-found]

        display(_figure(run, series))
    else:
        print(terminal_plot(run, series))
    return None


def terminal_plot(run: Run, series: Series, *, size: tuple[int, int] = (80, 22)) -> str:
    """The curves as text, in colour only if stdout is a terminal."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(*size)
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        curve = figure.signal(list(steps), list(values))
        curve.lines()
        curve.label(name)
        figure.draw(curve)
    reached = [step for points in series.values() for step, _ in points]
    highest = max(value for points in series.values() for _, value in points)
    if max(reached) > min(reached):  # at the top right, where a curve that falls leaves room
        figure.legend(x=max(reached), y=highest, ha="right", relative=True)
    figure.ruler("x").ticks(_whole_ticks(min(reached), max(reached)))
    figure.title(one_line(run.name))
    figure.label("step")
    text = str(figure.build())
    return text if sys.stdout.isatty() else str(plotext.uncolorize(text))


def _whole_ticks(first: int, last: int) -> list[int]:
    """At most six whole numbers from `first` to `last`, evenly spread."""
    return sorted({first + (last - first) * part // 5 for part in range(6)})


def _figure(run: Run, series: Series) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise MissingExtra("a picture needs matplotlib, not installed here", extra="plot") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=run.name, xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.legend()
    return figure


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
