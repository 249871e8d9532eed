"""``ftctl runs``: the verbs that look at runs and follow them; those that act are in `run_actions`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fm.cli import run_actions
from fm.cli.chosen import COLUMNS, cells, complete, one
from fm.cli.render import output_options, show_many, show_one, to_json
from fm.display import plain

if TYPE_CHECKING:
    from fm.run import Run
    from fm.tables import RunList

_WATCH_SECONDS = 2.0


@click.group()
def runs() -> None:
    """Look at runs, follow them, and act on them.

    RUN is a name (the latest run that bears it), an id, or the beginning of an id. Where several are taken, also a glob
    such as 'qa-*'.
    """


for _action in (run_actions.wait, run_actions.cancel, run_actions.resume, run_actions.rerun, run_actions.rm):
    runs.add_command(_action)


@runs.command("list")
@click.argument("patterns", metavar="[RUN]...", nargs=-1, shell_complete=complete)
@click.option("--status", "statuses", metavar="A,B", help="Only runs in one of these statuses.")
@click.option("--since", metavar="WHEN", help="Only runs created since: 2h, 3d, 2026-11-23.")
@click.option("--until", metavar="WHEN", help="Only runs created before.")
@click.option("--owner", "owners", multiple=True, help="Only runs of this user; may be repeated.")
@click.option("--experiment", metavar="ID", help="Only runs of this experiment.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many, newest first.")
@click.option("--watch", is_flag=True, help="Show the list again every two seconds, until Ctrl-C.")
@output_options
def list_command(watch: bool, output: str, quiet: bool, **wanted: Any) -> None:
    """List runs, newest first."""

    def show() -> None:
        rows = [(cells(run), run.details, run.id) for run in _find(**wanted)]
        show_many(COLUMNS, rows, output, quiet, none="no runs")

    _repeat(show) if watch else show()


@runs.command()
@one
@output_options
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until the run has ended.")
def get(run: str, output: str, quiet: bool, watch: bool) -> None:
    """Show all that is recorded of a run."""
    from fm.api.runs import get as get_run

    handle = get_run(run)

    def show() -> None:
        show_one(handle.details, handle.id, output, quiet)

    _repeat(show, until=lambda: handle.refresh().status.is_terminal()) if watch else show()


@runs.command()
@one
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended; its end is the exit code.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines of what there is.")
def logs(run: str, follow: bool, tail: int | None) -> None:
    """Print what the training printed."""
    from fm.api.runs import get as get_run
    from fm.follow import detached_by_interrupt, follow_logs, raise_for_status

    handle = get_run(run)
    if not follow:
        text = handle.logs()
        click.echo(_tail(text, tail), nl=False)
        if not text:
            click.echo(f"it printed nothing; what happened: ftctl runs events {handle.name}", err=True)
        return
    with detached_by_interrupt(handle):
        offset = 0
        if tail is not None:
            before, offset = _log_so_far(handle)
            click.echo(_tail(before, tail), nl=False)
        for piece in follow_logs(handle, offset):
            click.echo(plain(piece), nl=False)
            sys.stdout.flush()
    raise_for_status(handle)


@runs.command()
@one
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended; its end is the exit code.")
@output_options
def events(run: str, follow: bool, output: str, quiet: bool) -> None:
    """Print a run's events, oldest first."""
    from fm.api.runs import get as get_run
    from fm.follow import detached_by_interrupt, raise_for_status
    from fm.progress import event_line

    handle = get_run(run)
    if output == "json" and not follow:
        click.echo(to_json([event.model_dump(mode="json") for event in handle.events()], indent=2))
        return
    with detached_by_interrupt(handle):
        for event in handle.events(follow=follow):
            if quiet:
                click.echo(event.seq)
            else:
                click.echo(event_line(event) if output == "table" else to_json(event.model_dump(mode="json")))
            sys.stdout.flush()
    if follow:
        raise_for_status(handle)


@runs.command()
@one
@click.option("--key", "keys", multiple=True, help="Only this figure, such as loss/train/total; may be repeated.")
@output_options
def metrics(run: str, keys: tuple[str, ...], output: str, quiet: bool) -> None:
    """Print a run's figures by optimiser step."""
    from fm.api.runs import get as get_run

    figures = get_run(run).metrics(keys or None)
    columns = ("STEP", *figures.keys)
    rows: list[Any] = []
    for row in figures:
        cells = [row.step, *(f"{row.values[key]:.6g}" if key in row.values else "" for key in figures.keys)]
        rows.append((cells, row.model_dump(mode="json"), str(row.step)))
    show_many(columns, rows, output, quiet, none=f"no figure {', '.join(keys)}" if keys else "no metrics yet")


@runs.command()
@one
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG there instead.")
def plot(run: str, out: Path | None) -> None:
    """Draw the loss in the terminal, or to a PNG."""
    from fm.api.runs import get as get_run

    if path := get_run(run).plot(out):
        click.echo(path)


def _find(
    patterns: tuple[str, ...], statuses: str | None, since: str | None, until: str | None, owners: tuple[str, ...],
    experiment: str | None, limit: int,
) -> RunList:
    from fm.api.runs import list as list_runs

    return list_runs(
        patterns or None, experiment, statuses=[part.strip() for part in statuses.split(",")] if statuses else None,
        user_emails=owners, after=since, before=until, limit=limit,
    )


def _tail(text: str, lines: int | None) -> str:
    kept = text.splitlines(keepends=True)
    return plain("".join(kept if lines is None else kept[len(kept) - min(lines, len(kept)) :]))


def _log_so_far(run: Run) -> tuple[str, int]:
    text, offset = "", 0
    while (chunk := run.backend.runs.logs(run.id, offset=offset)).text:
        text, offset = text + chunk.text, chunk.next_offset
    return text, offset


def _repeat(show: Callable[[], None], until: Callable[[], bool] = lambda: False) -> None:
    for _ in _ticks(until):
        if sys.stdout.isatty():
            click.clear()
        show()
        sys.stdout.flush()


def _ticks(until: Callable[[], bool]) -> Iterator[None]:
    while not until():
        yield
        time.sleep(_WATCH_SECONDS)
    yield
