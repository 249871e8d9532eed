"""The verbs of ``ftctl runs`` that act: wait, cancel, resume, rerun, rm."""

from __future__ import annotations

import click

from fm.cli.chosen import complete, is_glob, named, one, several, show_runs, started
from fm.cli.render import output_options
from fm.display import one_line


@click.command()
@several
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long.")
@output_options
def wait(runs: tuple[str, ...], timeout: float | None, output: str, quiet: bool) -> None:
    """Wait until runs have ended; how they end is the exit code."""
    from fm.api.runs import wait as wait_for
    from fm.follow import raise_for_status

    ended = wait_for(named(runs), timeout=timeout, raise_on_failure=False)
    show_runs(ended, output, quiet)
    for run in ended:
        raise_for_status(run)


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, shell_complete=complete)
@click.option("--experiment", metavar="ID", help="All runs of this experiment.")
@click.option("--reason", default="", help="Why, for the record.")
def cancel(runs: tuple[str, ...], experiment: str | None, reason: str) -> None:
    """Stop runs; one that trains saves a checkpoint first."""
    from fm.api.runs import cancel as cancel_runs

    if not runs and experiment is None:
        raise click.UsageError("name the runs to cancel, or --experiment")
    if len(runs) == 1 and not is_glob(runs[0]):
        named(runs)[0].cancel(reason)  # of a single named run, say that it has ended
        count = 1
    else:
        count = cancel_runs(named(runs), experiment, reason=reason)
    click.echo(f"cancelled {count} run{'s' * (count != 1)}", err=True)


@click.command()
@one
@click.option("--follow", is_flag=True, help="Wait for the end of the new run.")
@output_options
def resume(run: str, follow: bool, output: str, quiet: bool) -> None:
    """Go on from the last checkpoint of a run that was stopped or failed, as a new run."""
    from fm.api.runs import get as get_run

    started(get_run(run).resume(), follow, output, quiet)


@click.command()
@one
@click.option("--follow", is_flag=True, help="Wait for the end of the new run.")
@output_options
def rerun(run: str, follow: bool, output: str, quiet: bool) -> None:
    """Make the same run again, from its record alone."""
    from fm.api.create import rerun as rerun_run

    started(rerun_run(run), follow, output, quiet)


@click.command()
@several
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def rm(runs: tuple[str, ...], yes: bool) -> None:
    """Remove ended runs with their folders. Registered models stay."""
    chosen = named(runs)
    names = ", ".join(one_line(run.name) for run in chosen[:5]) + (" …" if len(chosen) > 5 else "")
    if not yes:
        click.confirm(f"remove {len(chosen)} run{'s' * (len(chosen) != 1)} ({names})?", abort=True, err=True)
    for run in chosen:
        run.backend.runs.delete(run.id)
    click.echo(f"removed {names}", err=True)
