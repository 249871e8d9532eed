"""``ftctl data``: check data, see which of its tokens would be trained, and what the file store has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from fm.cli.render import output_options, show_many, show_one
from fm.display import age, human_bytes, plain

if TYPE_CHECKING:
    from fm.types import Dataset

_COLUMNS = ("NAME", "SIZE", "ROWS", "SENSITIVE", "AGE", "DIGEST")
_TASKS = ("CHAT_COMPLETION", "INSTRUCTION_FINETUNE", "CONTINUED_PRETRAIN")
_task = click.option(
    "--task-type", type=click.Choice(_TASKS, case_sensitive=False), default=_TASKS[0], metavar=f"[{'|'.join(_TASKS)}]",
    show_default=True, help="What the rows are.",
)


@click.group()
def data() -> None:
    """Check data, see which of its tokens would be trained, and what has been sent.

    DIGEST is that of a data set, or a beginning of it that no other has.
    """


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


@data.command()
@click.argument("path")
@_task
@click.option("--sensitive", is_flag=True, help="From the start: no download, no samples in events, no tracker "
              "elsewhere.")
def add(path: str, task_type: str, sensitive: bool) -> None:
    """Check a data set, send it, and print its digest. `ftctl create` sends data by itself; this does so before."""
    from fm.context import current
    from fm.data import check, locate
    from fm.progress import data_progress, upload_progress
    from fm.request import TaskType
    from fm.sending import send

    source = locate(path, field="path")
    with data_progress(source.name) as progress:
        found = check(source, TaskType(task_type.upper()), progress=progress)
    with upload_progress(source.name) as progress:
        sent = send(
            current().files, source, found.digest, rows=found.rows, sensitive=sensitive, progress=progress
        )
    click.echo(sent.digest)


@data.command("list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many, newest first.")
@output_options
def list_command(limit: int, output: str, quiet: bool) -> None:
    """List the data sets that have been sent, newest first."""
    from fm.context import current

    found = current().files.list(limit=limit)
    rows = [(_cells(one), one.model_dump(mode="json"), one.digest) for one in found]
    show_many(_COLUMNS, rows, output, quiet, none="no data sets")


@data.command()
@click.argument("digest")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def rm(digest: str, yes: bool) -> None:
    """Remove a data set. One that a run still needs can't be removed."""
    from fm.context import current

    files = current().files
    found = _named(files.list(), digest) or files.get(digest)
    if not yes:
        click.confirm(f"remove {found.name} ({human_bytes(found.bytes)})?", abort=True, err=True)
    files.delete(found.digest)
    click.echo(f"removed {found.name} {found.digest}", err=True)


def _named(known: Sequence[Dataset], digest: str) -> Dataset | None:
    """The one data set that is known and whose digest begins so; None if there is none."""
    from fm.errors import RequestError

    fitting = [one for one in known if one.digest.startswith(digest)]
    if len(fitting) > 1:
        raise RequestError(f"{len(fitting)} data sets begin with {digest!r}", field="digest", hint="give more digits")
    return fitting[0] if fitting else None


def _cells(one: Dataset) -> tuple[Any, ...]:
    rows, sensitive = "" if one.rows is None else one.rows, "yes" if one.sensitive else ""
    return one.name, human_bytes(one.bytes), rows, sensitive, age(one.created_at), one.digest


def _mark(text: str, trained: bool) -> str:
    import sys

    if not trained:
        return plain(text)
    return click.style(plain(text), fg="green", bold=True) if sys.stdout.isatty() else f"«{plain(text)}»"
