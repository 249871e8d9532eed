"""``ftctl admin grants|data|audit``: what teams let each other read, what is sensitive, and who did what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fm.cli.administer import administration, show
from fm.cli.render import output_options
from fm.display import human_bytes, local_time

if TYPE_CHECKING:
    from fm.store.audit import AuditEntry

_KIND = click.Choice(["model", "data"])


@click.group()
def grants() -> None:
    """What a team lets another one read: a MODEL by its name, or DATA by its digest."""


@grants.command("list")
@output_options
def list_grants(output: str, quiet: bool) -> None:
    """List all grants."""
    with administration() as orders:
        found = orders.grants()
    show(
        ("TEAM", "KIND", "OBJECT", "TO TEAM", "SINCE"), found,
        lambda grant: (grant.team, grant.kind, grant.object, grant.to_team, local_time(grant.created_at)),
        lambda grant: grant.object, output, quiet, none="no grants",
    )  # fmt: skip


@grants.command("add")
@click.argument("team")
@click.argument("kind", type=_KIND)
@click.argument("object")
@click.argument("to_team")
def add_grant(team: str, kind: Any, object: str, to_team: str) -> None:
    """Let TO_TEAM read the model or data set OBJECT of TEAM: see, open and train on it, and change nothing."""
    with administration() as orders:
        orders.grant(team, kind, object, to_team)


@grants.command("rm")
@click.argument("team")
@click.argument("kind", type=_KIND)
@click.argument("object")
@click.argument("to_team")
def remove_grant(team: str, kind: Any, object: str, to_team: str) -> None:
    """Take a grant back. Runs that use what it allowed go on."""
    with administration() as orders:
        orders.revoke_grant(team, kind, object, to_team)


@click.group()
def data() -> None:
    """Data sets that teams have sent, and which of them are sensitive."""


@data.command("list")
@output_options
def list_datasets(output: str, quiet: bool) -> None:
    """List the data sets of all teams, newest first."""
    with administration() as orders:
        found = orders.datasets()
    show(
        ("TEAM", "NAME", "SIZE", "ROWS", "SENSITIVE", "OWNER", "SINCE", "DIGEST"), found,
        lambda data: (data.team, data.name, human_bytes(data.bytes), data.rows if data.rows is not None else "",
                      "yes" if data.sensitive else "", data.owner, local_time(data.created_at), data.digest),
        lambda data: data.digest, output, quiet, none="no data sets",
    )  # fmt: skip


@data.command("mark")
@click.argument("team")
@click.argument("digest")
@click.option("--sensitive/--not-sensitive", required=True, default=None, help="No download, no samples in events, "
              "no tracker elsewhere; or all of these again.")
def mark_dataset(team: str, digest: str, sensitive: bool) -> None:
    """Mark a data set of TEAM as sensitive, or as no longer so."""
    with administration() as orders:
        orders.mark_dataset(team, digest, sensitive=sensitive)


@click.command()
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, newest first.")
@click.option("--verify", is_flag=True, help="Check the whole chain of entries instead of listing them.")
@click.option("--noted", metavar="DIGEST", help="With --verify: a digest that an earlier --verify printed, which must "
              "still be in the chain.")
@output_options
def audit(limit: int, verify: bool, noted: str | None, output: str, quiet: bool) -> None:
    """Show who did what, or check that nobody has changed the record of it.

    Note what --verify prints at another place: a chain that was made anew from the start is whole, but lacks it.
    """
    if noted and not verify:
        raise click.UsageError("--noted goes with --verify")
    with administration() as orders:
        if verify:
            head = orders.verify_audit(noted)
            click.echo(f"{head.entries:,} entries, whole", err=True)
            click.echo(head.digest)
            return
        found = orders.audit(limit)
    show(
        ("SEQ", "TIME", "USER", "TEAM", "TOKEN", "FROM", "ACTION", "OBJECT", "DETAIL"), found, _cells,
        lambda entry: str(entry.seq), output, quiet, none="no entries",
    )  # fmt: skip


def _cells(entry: AuditEntry) -> tuple[Any, ...]:
    detail = " ".join(f"{key}={_short(value)}" for key, value in entry.detail.items() if value not in (None, "", []))
    by = (entry.user, entry.team, entry.token, entry.address)
    return entry.seq, local_time(entry.time), *by, entry.action, entry.object, detail


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
