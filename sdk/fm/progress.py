"""Progress on stderr: a bar on a terminal, plain lines elsewhere. rich is imported only for the bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from fm.display import local_time, one_line
from fm.lifecycle import EventType
from fm.types import Event

if TYPE_CHECKING:
    from rich.progress import Progress

    from fm.run import Run

_LINE_SECONDS = 10.0
"""Off a terminal, TRAIN_UPDATED is shown at most this often."""
_BIG = 50_000_000
"""Bytes of data from which on reading them shows a bar."""


TRAIN_LOSS = "loss/train/total"


def event_line(event: Event) -> str:
    """An event on one line, with its local time."""
    return f"{local_time(event.time)}  {event.type.value:<18} {one_line(event.message)}"


@contextmanager
def show_progress(run: Run) -> Iterator[Callable[[Event], None]]:
    """What to call with each event of `run` while waiting for it."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from fm.follow import read_metrics

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(_title(run), total=None, facts="")

        step, loss = -1, ""

        def show(event: Event) -> None:
            nonlocal step, loss
            for row in read_metrics(run, [TRAIN_LOSS], step) if event.type is EventType.TRAIN_UPDATED else ():
                step, loss = row.step, f"loss {row.values[TRAIN_LOSS]:.4f}"
            facts = [loss] if loss else []
            if eta := run.formatted_eta:
                facts.append(f"{eta} left")
            if event.type is not EventType.TRAIN_UPDATED:
                bar.console.print(event_line(event), markup=False, highlight=False, soft_wrap=True)
            record = run.record
            bar.update(task, description=escape(_title(run)), completed=record.step, total=record.total_steps)
            if facts:
                bar.update(task, facts=" · ".join(facts))

        yield show


def data_progress(name: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A callable (bytes read, bytes in all) that shows a bar while big data is checked; None off a terminal."""
    return _bytes_progress(f"checking {name}")


def upload_progress(name: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """The same while it is sent to a server."""
    return _bytes_progress(f"sending {name}")


@contextmanager
def _bytes_progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    bar: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and total >= _BIG:
            bar = _data_bar(what, total)
            bar.start()
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def _data_bar(what: str, total: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(one_line(what), total=total)
    return bar


def _lines() -> Callable[[Event], None]:
    shown_at = -_LINE_SECONDS

    def show(event: Event) -> None:
        nonlocal shown_at
        if event.type is EventType.TRAIN_UPDATED:
            if time.monotonic() - shown_at < _LINE_SECONDS:
                return
            shown_at = time.monotonic()
        print(event_line(event), file=sys.stderr, flush=True)

    return show


def _title(run: Run) -> str:
    return one_line(f"{run.name} {run.status.value}")
