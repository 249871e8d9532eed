"""``ftctl admin teams|users|tokens``: who may use a run store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from fm.cli.administer import administration, show
from fm.cli.render import output_options, show_one
from fm.display import human_bytes, local_time

_NEVER = "never"
_NO_LIMIT = "none"


@click.group()
def teams() -> None:
    """Teams, each with its own runs, models and data sets, and their limits."""


@teams.command("list")
@output_options
def list_teams(output: str, quiet: bool) -> None:
    """List all teams with their limits."""
    with administration() as orders:
        found = orders.teams()
    show(
        ("TEAM", "MAX RUNNING", "MAX DISK", "SINCE"), found,
        lambda team: (team.name, _limit(team.max_running, str), _limit(team.max_disk, human_bytes),
                      local_time(team.created_at)),
        lambda team: team.name, output, quiet, none="no teams",
    )  # fmt: skip


@teams.command("add")
@click.argument("name")
def add_team(name: str) -> None:
    """Make a team."""
    with administration() as orders:
        orders.add_team(name)
    click.echo(f"made team {name}; next: ftctl admin users add {name} USER", err=True)


@teams.command("set")
@click.argument("name")
@click.option("--max-running", metavar="N", help="Runs that may be going at once, or none for no limit.")
@click.option("--max-disk", metavar="SIZE", help="Such as 500GB: what its runs, models and data sets may take up "
              "before no further run is started; or none for no limit.")
def set_team(name: str, max_running: str | None, max_disk: str | None) -> None:
    """Limit a team."""
    from fm.planning import parse_bytes

    limits: dict[str, int | None] = {}
    if max_running is not None:
        limits["max_running"] = None if max_running == _NO_LIMIT else _whole(max_running)
    if max_disk is not None:
        limits["max_disk"] = None if max_disk == _NO_LIMIT else parse_bytes(max_disk, field="max_disk")
    if not limits:
        raise click.UsageError("nothing to set: pass --max-running or --max-disk")
    with administration() as orders:
        orders.limit_team(name, **limits)


@click.group()
def users() -> None:
    """Users of teams. Who is in two teams is a user of each."""


@users.command("list")
@click.option("--team", help="Only those of one team.")
@output_options
def list_users(team: str | None, output: str, quiet: bool) -> None:
    """List users."""
    with administration() as orders:
        found = orders.users(team)
    show(
        ("TEAM", "USER", "SINCE"), found, lambda user: (user.team, user.name, local_time(user.created_at)),
        lambda user: user.name, output, quiet, none="no users",
    )  # fmt: skip


@users.command("add")
@click.argument("team")
@click.argument("name")
def add_user(team: str, name: str) -> None:
    """Make NAME a user of TEAM."""
    with administration() as orders:
        orders.add_user(team, name)
    click.echo(f"made user {name} of team {team}; next: ftctl admin tokens make {team} {name}", err=True)


@users.command("rm")
@click.argument("team")
@click.argument("name")
def remove_user(team: str, name: str) -> None:
    """Remove a user and revoke the user's tokens. Runs and models stay with the team."""
    with administration() as orders:
        orders.remove_user(team, name)


@click.group()
def tokens() -> None:
    """Tokens, by which a server knows who calls."""


@tokens.command("list")
@click.option("--team", help="Only those of one team.")
@output_options
def list_tokens(team: str | None, output: str, quiet: bool) -> None:
    """List tokens, newest first; what can be listed of one is not the token itself."""
    with administration() as orders:
        found = orders.tokens(team)
    show(
        ("ID", "TEAM", "USER", "SCOPES", "EXPIRES", "LAST USED", "REVOKED"), found,
        lambda token: (token.id, token.team, token.user, ",".join(token.scopes), _moment(token.expires_at),
                       _moment(token.last_used_at), local_time(token.revoked_at)),
        lambda token: token.id, output, quiet, none="no tokens",
    )  # fmt: skip


@tokens.command("make")
@click.argument("team")
@click.argument("user")
@click.option("--scope", "scopes", multiple=True, default=("read", "submit"), show_default=True,
              type=click.Choice(["read", "submit", "admin"]), help="What it is good for; may be repeated.")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it is good.")
@output_options
def make_token(team: str, user: str, scopes: Sequence[Any], days: int, output: str, quiet: bool) -> None:
    """Make a token for a user. It is printed this once, and can't be shown again."""
    with administration() as orders:
        made = orders.make_token(team, user, scopes=scopes, days=days)
    if output == "table":
        click.echo(made.text)
        click.echo(f"token {made.id}: {', '.join(scopes)}; good for {days} days. Keep it: it is not shown again",
                   err=True)  # fmt: skip
    else:
        show_one({"id": made.id, "token": made.text}, made.text, output, quiet)


@tokens.command("revoke")
@click.argument("token_id", metavar="ID")
def revoke_token(token_id: str) -> None:
    """End a token at once."""
    with administration() as orders:
        orders.revoke_token(token_id)


def _limit(value: int | None, written: Callable[[int], str]) -> str:
    return _NO_LIMIT if value is None else written(value)


def _moment(value: datetime | None) -> str:
    return _NEVER if value is None else local_time(value)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise click.UsageError(f"--max-running {text!r} is not a whole number")
    return int(text)
