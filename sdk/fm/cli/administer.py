"""How the verbs of ``ftctl admin`` open the store that the command line names, and show what is in it."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from fm.cli.render import show_many

if TYPE_CHECKING:
    from fm.store.admin import Administration
    from fm.types import Principal


def store_url() -> str:
    """URL of the store that the command line names."""
    from fm.settings import Settings

    if url := click.get_current_context().obj["database"]:
        return str(url)
    settings = Settings.read()
    settings.prepare_home()
    return settings.store_url


def caller() -> Principal:
    """Whoever calls. Who may open the store may do everything with it."""
    from fm.types import Principal

    return Principal(user=getpass.getuser())


@contextmanager
def administration() -> Iterator[Administration]:
    """The store that the command line names, in the hands of whoever calls."""
    from fm.store.store import RunStore

    store = RunStore(store_url())
    try:
        yield store.administration(caller())
    finally:
        store.close()


def show(
    columns: Sequence[str], found: Sequence[Any], cells: Callable[[Any], Sequence[object]], name: Callable[[Any], str],
    output: str, quiet: bool, *, none: str,
) -> None:  # fmt: skip
    """Prints dataclasses or records in the form that was asked for."""
    show_many(columns, [(cells(item), _values(item), name(item)) for item in found], output, quiet, none=none)


def _values(item: Any) -> dict[str, Any]:
    values = asdict(item) if is_dataclass(item) and not isinstance(item, type) else dict(item)
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values.items()}
