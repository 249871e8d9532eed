"""``ftctl admin``: the verbs of whoever runs a store for others."""

from __future__ import annotations

import click

from fm.cli.admin_objects import audit, data, grants
from fm.cli.admin_people import teams, tokens, users
from fm.cli.admin_store import backup, restore, upgrade


@click.group()
@click.option("--database", metavar="URL", help="The run store (default: FM_STORE, else the one in FM_HOME).")
@click.pass_context
def admin(ctx: click.Context, database: str | None) -> None:
    """Administer a run store: who may use it, who did what, backup and upgrade.

    Works on the store itself, so whoever may open that may do everything here.
    """
    ctx.obj = {**(ctx.obj or {}), "database": database}


for command in (audit, backup, data, grants, restore, teams, tokens, upgrade, users):
    admin.add_command(command)
