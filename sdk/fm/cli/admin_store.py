"""``ftctl admin backup|restore|upgrade``: the store as a whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from fm.cli.administer import caller, store_url

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
def backup(file: Path) -> None:
    """Write the store to FILE, as it is at one moment. Run folders and weights are not in it.

    The file holds JSON lines that SQLite and PostgreSQL both restore, and the digest of its content.
    """
    from fm.store.backup import back_up

    made = back_up(store_url(), file, caller(), datetime.now(UTC))
    click.echo(f"wrote {made.rows:,} rows to {file}; SHA-256 of them:", err=True)
    click.echo(made.sha256)


@click.command()
@click.argument("file", type=_FILE)
def restore(file: Path) -> None:
    """Make the store in FILE anew, in a database that holds none yet."""
    from fm.store.backup import restore as restore_store

    made = restore_store(store_url(), file, caller(), datetime.now(UTC))
    click.echo(f"restored {made.rows:,} rows", err=True)
    click.echo(made.sha256)


@click.command()
def upgrade() -> None:
    """Bring the store's schema up to this version of ftctl, in one transaction.

    SQLite stores are brought up to date by whatever opens them; a PostgreSQL one by this alone. End its server and
    agents first: older ones can't use it any more.
    """
    from fm.store.backup import upgrade as upgrade_store

    for step in upgrade_store(store_url(), caller(), datetime.now(UTC)):
        click.echo(step)
