"""How things look: tables on a terminal, plain columns in a pipe, JSON, JSON lines, or ids alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from fm.display import one_line, text_table

F = TypeVar("F", bound=Callable[..., Any])
Row = tuple[Sequence[object], Mapping[str, Any], str]
"""One thing to show: the cells of its table row, its JSON-able value, its id."""

_STYLES = {
    "COMPLETED": "green", "RUNNING": "cyan", "STARTING": "cyan", "FAILED": "red", "STOPPED": "yellow",
    "TERMINATING": "yellow", "ok": "green", "warn": "yellow", "fail": "red",
}
_WHOLE = {"ID", "STATUS", "RUN"}
"""Columns that are not broken over lines on a narrow terminal: they are short, and copied from there."""


def output_options(command: F) -> F:
    """Adds ``-o`` and ``-q`` to a command, as `output` and `quiet`."""
    formats = click.Choice(["table", "json", "jsonl"])
    command = click.option("-q", "--quiet", is_flag=True, help="Print ids only.")(command)
    return click.option("-o", "--output", type=formats, default="table", show_default=True, help="Output format.")(
        command
    )


def show_many(columns: Sequence[str], rows: Iterable[Row], output: str, quiet: bool, *, none: str) -> None:
    """Prints several things; `none` says on stderr that there are none."""
    things = list(rows)
    if quiet:
        for _, _, name in things:
            click.echo(one_line(name))
    elif output == "json":
        click.echo(to_json([value for _, value, _ in things], indent=2))
    elif output == "jsonl":
        for _, value, _ in things:
            click.echo(to_json(value))
    elif not things:
        click.echo(none, err=True)
    else:
        table(columns, [cells for cells, _, _ in things])


def show_one(value: Mapping[str, Any], name: str, output: str, quiet: bool) -> None:
    """Prints one thing, field by field; in a table ``a.b`` is the field b of a, and empty fields are left out."""
    if quiet:
        click.echo(one_line(name))
    elif output == "table":
        table(("field", "value"), list(_fields(value)))
    else:
        click.echo(to_json(value, indent=2 if output == "json" else None))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows under their columns. In a pipe nothing is cut or coloured."""
    if not sys.stdout.isatty():
        click.echo(text_table(columns, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    for row in rows:
        cells = [one_line(str(cell)) for cell in row]
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))  # Text: no markup is read
    Console().print(shown)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in which all that a terminal could act on is escaped."""
    return json.dumps(value, indent=indent, default=str)


def _fields(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _fields(item, f"{prefix}{key}.")
        elif item not in (None, "", [], ()):
            yield prefix + key, _text(item)


def _text(value: Any) -> str:
    return to_json(value) if isinstance(value, (dict, list, tuple)) else str(value)
