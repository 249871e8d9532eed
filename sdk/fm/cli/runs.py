"""``ftctl runs``: look at runs, follow them, and act on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from fm.cli.render import output_options, show_many, show_one, to_json
from fm.display import age, one_line, plain
from fm.errors import NotFound

if TYPE_CHECKING:
    from fm.run import Run
    from fm.tables import RunList

_WATCH_SECONDS = 2.0
_COLUMNS = ("NAME", "STATUS", "PROGRESS", "ETA", "MODEL", "OWNER", "AGE", "ID")


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    from fm.api import list as list_runs

    return [CompletionItem(name) for name in sorted({run.name for run in list_runs(f"{incomplete}*", limit=50)})]


_one = click.argument("run", metavar="RUN", shell_complete=_complete)
_several = click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=_complete)


@click.group()
def runs() -> None:
    """Look at runs, follow them, and act on them.

    RUN is a name (the latest run that bears it), an id, or the beginning of an id. Where several are taken, also a glob
    such as 'qa-*'.
    """


@runs.command("list")
@click.argument("patterns", metavar="[RUN]...", nargs=-1, shell_complete=_complete)
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
        rows = [(_cells(run), run.details, run.id) for run in _find(**wanted)]
        show_many(_COLUMNS, rows, output, quiet, none="no runs")

    _repeat(show) if watch else show()


@runs.command()
@_one
@output_options
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until the run has ended.")
def get(run: str, output: str, quiet: bool, watch: bool) -> None:
    """Show all that is recorded of a run."""
    from fm.api import get as get_run

    handle = get_run(run)

    def show() -> None:
        show_one(handle.details, handle.id, output, quiet)

    _repeat(show, until=lambda: handle.refresh().status.is_terminal()) if watch else show()


@runs.command()
@_one
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended; its end is the exit code.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines of what there is.")
def logs(run: str, follow: bool, tail: int | None) -> None:
    """Print what the training printed."""
    from fm.api import get as get_run
    from fm.follow import detached_by_interrupt, follow_logs, raise_for_status

    handle = get_run(run)
    if not follow:
        click.echo(_tail(handle.logs(), tail), nl=False)
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
@_one
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended; its end is the exit code.")
@output_options
def events(run: str, follow: bool, output: str, quiet: bool) -> None:
    """Print a run's events, oldest first."""
    from fm.api import get as get_run
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
@_one
@click.option("--key", "keys", multiple=True, help="Only this figure, such as loss/train/total; may be repeated.")
@output_options
def metrics(run: str, keys: tuple[str, ...], output: str, quiet: bool) -> None:
    """Print a run's figures by optimiser step."""
    from fm.api import get as get_run

    figures = get_run(run).metrics(keys or None)
    columns = ("STEP", *figures.keys)
    rows: list[Any] = []
    for row in figures:
        cells = [row.step, *(f"{row.values[key]:.6g}" if key in row.values else "" for key in figures.keys)]
        rows.append((cells, row.model_dump(mode="json"), str(row.step)))
    show_many(columns, rows, output, quiet, none="no metrics yet")


@runs.command()
@_several
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
@output_options
def wait(runs: tuple[str, ...], timeout: float | None, output: str, quiet: bool) -> None:
    """Wait until runs have ended; how they end is the exit code."""
    from fm.api import wait as wait_for
    from fm.follow import raise_for_status

    ended = wait_for(_named(runs), timeout=timeout, raise_on_failure=False)
    _show(ended, output, quiet)
    for run in ended:
        raise_for_status(run)


@runs.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, shell_complete=_complete)
@click.option("--experiment", metavar="ID", help="All runs of this experiment.")
@click.option("--reason", default="", help="Why, for the record.")
def cancel(runs: tuple[str, ...], experiment: str | None, reason: str) -> None:
    """Stop runs; one that trains saves a checkpoint first."""
    from fm.api import cancel as cancel_runs

    if not runs and experiment is None:
        raise click.UsageError("name the runs to cancel, or --experiment")
    if len(runs) == 1 and not _is_glob(runs[0]):
        _named(runs)[0].cancel(reason)  # of a single named run, say that it has ended
        count = 1
    else:
        count = cancel_runs(_named(runs), experiment, reason=reason)
    click.echo(f"cancelled {count} run{'s' * (count != 1)}", err=True)


@runs.command()
@_one
@click.option("--follow", is_flag=True, help="Wait for the end of the new run.")
@output_options
def resume(run: str, follow: bool, output: str, quiet: bool) -> None:
    """Go on from the last checkpoint of a run that was stopped or failed, as a new run."""
    from fm.api import get as get_run

    started(get_run(run).resume(), follow, output, quiet)


@runs.command()
@_one
@click.option("--follow", is_flag=True, help="Wait for the end of the new run.")
@output_options
def rerun(run: str, follow: bool, output: str, quiet: bool) -> None:
    """Make the same run again, from its record alone."""
    from fm.api import rerun as rerun_run

    started(rerun_run(run), follow, output, quiet)


@runs.command()
@_several
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def rm(runs: tuple[str, ...], yes: bool) -> None:
    """Remove ended runs with their folders. Registered models stay."""
    chosen = _named(runs)
    names = ", ".join(one_line(run.name) for run in chosen[:5]) + (" …" if len(chosen) > 5 else "")
    if not yes:
        click.confirm(f"remove {len(chosen)} run{'s' * (len(chosen) != 1)} ({names})?", abort=True, err=True)
    for run in chosen:
        run.backend.runs.delete(run.id)
    click.echo(f"removed {names}", err=True)


@runs.command()
@_one
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG there instead.")
def plot(run: str, out: Path | None) -> None:
    """Draw the loss in the terminal, or to a PNG."""
    from fm.api import get as get_run

    if path := get_run(run).plot(out):
        click.echo(path)


def started(run: Run, follow: bool, output: str, quiet: bool) -> None:
    """Shows a run that was just made, and waits for it if wished."""
    from fm.follow import raise_for_status

    if not follow:
        _show([run], output, quiet)
        click.echo(f"follow it with: ftctl runs wait {run.name}", err=True)
        return
    run.wait(raise_on_failure=False)
    _show([run], output, quiet)
    raise_for_status(run)


def _show(chosen: list[Run], output: str, quiet: bool) -> None:
    rows = [(_cells(run), run.details, run.id) for run in chosen]
    show_many(_COLUMNS, rows, output, quiet, none="no runs")


def _cells(run: Run) -> tuple[str, ...]:
    since = age(run.created_at)
    return run.name, run.status.value, run.run_progress, run.formatted_eta, run.model, run.created_by, since, run.id


def _find(
    patterns: tuple[str, ...], statuses: str | None, since: str | None, until: str | None, owners: tuple[str, ...],
    experiment: str | None, limit: int,
) -> RunList:
    from fm.api import list as list_runs

    return list_runs(
        patterns or None, experiment, statuses=[part.strip() for part in statuses.split(",")] if statuses else None,
        user_emails=owners, after=since, before=until, limit=limit,
    )


def _named(patterns: tuple[str, ...]) -> list[Run]:
    """The runs that are named, each once; a glob must fit at least one."""
    from fm.api import get as get_run
    from fm.api import list as list_runs

    found: dict[str, Run] = {}
    for pattern in patterns:
        fitting = list_runs(pattern, limit=None) if _is_glob(pattern) else [get_run(pattern)]
        if not fitting:
            raise NotFound(f"no run's name fits {pattern!r}", hint="`ftctl runs list` shows those that there are")
        found |= {run.id: run for run in fitting}
    return list(found.values())


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


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
