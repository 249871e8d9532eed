"""``ftctl data``: check data, and see which of its tokens would be trained."""

from __future__ import annotations

from typing import Any

import click

from fm.cli.render import output_options, show_one
from fm.display import plain

_TASKS = ("CHAT_COMPLETION", "INSTRUCTION_FINETUNE", "CONTINUED_PRETRAIN")
_task = click.option(
    "--task-type", type=click.Choice(_TASKS, case_sensitive=False), default=_TASKS[0], metavar=f"[{'|'.join(_TASKS)}]",
    show_default=True, help="What the rows are.",
)


@click.group()
def data() -> None:
    """Check data, and see which of its tokens would be trained."""


@data.command()
@click.argument("path")
@_task
@output_options
def validate(path: str, task_type: str, output: str, quiet: bool) -> None:
    """Check every row; up to 20 faults are named with file, line, field and remedy."""
    from fm.data import check, locate
    from fm.progress import data_progress
    from fm.request import TaskType

    source = locate(path, field="path")
    with data_progress(source.name) as progress:
        found = check(source, TaskType(task_type.upper()), progress=progress)
    show_one(found.model_dump(mode="json"), found.digest, output, quiet)


@data.command()
@click.argument("path")
@click.argument("model")
@_task
@click.option("--rows", type=click.IntRange(1, 1000), default=3, show_default=True, help="How many rows to show.")
@click.option("--context-length", type=click.IntRange(8), help="Cut rows to this many tokens.")
@click.option("--train-on", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Of a chat.")
def preview(path: str, model: str, **options: Any) -> None:
    """Show rows as MODEL would see them: its template applied, trained tokens in colour.

    In a pipe, trained tokens stand between « and ».
    """
    from fm.context import current
    from fm.models import preview_rows

    for number, pieces in enumerate(preview_rows(path, model, backend=current(), **options), 1):
        click.secho(f"── row {number} ", dim=True)
        click.echo("".join(_mark(text, trained) for text, trained in pieces))


def _mark(text: str, trained: bool) -> str:
    import sys

    if not trained:
        return plain(text)
    return click.style(plain(text), fg="green", bold=True) if sys.stdout.isatty() else f"«{plain(text)}»"
