"""How the verbs of ``ftctl runs`` name runs, and show those that were named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from fm.cli.render import show_many
from fm.display import age
from fm.errors import NotFound

if TYPE_CHECKING:
    from fm.run import Run

COLUMNS = ("NAME", "STATUS", "PROGRESS", "ETA", "MODEL", "OWNER", "AGE", "ID")


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Names of runs that begin so, for the shell."""
    from fm.api.runs import list as list_runs

    return [CompletionItem(name) for name in sorted({run.name for run in list_runs(f"{incomplete}*", limit=50)})]


one = click.argument("run", metavar="RUN", shell_complete=complete)
several = click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete)


def named(patterns: tuple[str, ...]) -> list[Run]:
    """The runs that are named, each once; a glob must fit at least one."""
    from fm.api.runs import get as get_run
    from fm.api.runs import list as list_runs

    found: dict[str, Run] = {}
    for pattern in patterns:
        fitting = list_runs(pattern, limit=None) if is_glob(pattern) else [get_run(pattern)]
        if not fitting:
            raise NotFound(f"no run's name fits {pattern!r}", hint="`ftctl runs list` shows those that there are")
        found |= {run.id: run for run in fitting}
    return list(found.values())


def is_glob(pattern: str) -> bool:
    """Whether `pattern` may fit several names."""
    return any(sign in pattern for sign in "*?[")


def show_runs(chosen: list[Run], output: str, quiet: bool) -> None:
    """Prints runs in the form that was asked for."""
    rows = [(cells(run), run.details, run.id) for run in chosen]
    show_many(COLUMNS, rows, output, quiet, none="no runs")


def cells(run: Run) -> tuple[str, ...]:
    """The run's row under `COLUMNS`."""
    record, since = run.record, age(run.created_at)
    steps = f"{record.step:,}/{record.total_steps:,}" if record.total_steps else run.run_progress
    return run.name, run.status.value, steps, run.formatted_eta, run.model, run.created_by, since, run.id


def started(run: Run, follow: bool, output: str, quiet: bool) -> None:
    """Shows a run that was just made, and waits for it if wished."""
    from fm.follow import raise_for_status

    if not follow:
        show_runs([run], output, quiet)
        click.echo(f"follow it with: ftctl runs wait {run.name}", err=True)
        return
    run.wait(raise_on_failure=False)
    show_runs([run], output, quiet)
    raise_for_status(run)
    if run.registered_model:
        click.echo(f"registered {run.registered_model}; try it with: ftctl models try {run.registered_model}", err=True)
