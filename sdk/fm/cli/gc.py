"""``ftctl gc``: free the space of what belongs to nothing any more."""

from __future__ import annotations

import click

from fm.cli.render import table
from fm.display import human_bytes


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--only-store", is_flag=True, help="No other run store keeps runs in FM_RUNS or FM_FILES.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def gc(dry_run: bool, only_store: bool, yes: bool) -> None:
    """Free the space of what belongs to nothing any more.

    That is folders of removed runs, unregistered models, removed data sets, what killed preflights left, uploads that
    nobody went on with for a day, and what was not used for a week and can be made or brought again: tokenised data,
    copies of stored files.
    """
    from fm.garbage import find_garbage, remove
    from fm.settings import Settings
    from fm.store.store import RunStore

    settings = Settings.read()
    settings.prepare_home()
    store = RunStore(settings.store_url)
    try:
        found = find_garbage(settings, store, shared=only_store)
    finally:
        store.close()
    if not found:
        click.echo("nothing to remove", err=True)
        return
    table(("WHAT", "SIZE", "WHERE"), [(item.what, human_bytes(item.bytes), item.place) for item in found])
    total = human_bytes(sum(item.bytes for item in found))
    if dry_run:
        return
    if not yes:
        click.confirm(f"remove these ({total})?", abort=True, err=True)
    remove(found)
    click.echo(f"freed {total}", err=True)
