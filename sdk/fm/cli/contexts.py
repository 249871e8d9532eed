"""``ftctl login`` and ``ftctl context``: the servers that this user knows, and which one is used."""

from __future__ import annotations

import sys

import click

from fm.cli.render import output_options, show_many

_LOCAL = "local"
"""What `use` takes for this machine's own runs."""


@click.command()
@click.argument("name")
@click.argument("url")
def login(name: str, url: str) -> None:
    """Keep a token for the server at URL under NAME, and use that server from now on.

    The token is asked for, or read from stdin; it is kept in ~/.config/ftctl/contexts.json, for this user alone.
    """
    from fm.errors import RequestError
    from fm.plugins import BACKENDS
    from fm.remote.address import check_token, check_url
    from fm.remote.contexts import Context, Contexts
    from fm.remote.opening import open_remote

    if name in BACKENDS or "://" in name:
        raise RequestError(f"{name!r} can't name a server", field="name", hint="choose another name")
    url = check_url(url)
    token = click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    context = Context(url=url, token=check_token(token))
    info = open_remote(url, token=context.token).info
    Contexts.read().with_context(name, context, use=True).write()
    who = f"{info.user} of {info.team}"
    click.echo(f"logged in to {url} (ftctl {info.version}) as {who}; it is used from now on", err=True)


@click.group()
def context() -> None:
    """The servers that `ftctl login` knows, and which one is used."""


@context.command("list")
@output_options
def list_command(output: str, quiet: bool) -> None:
    """List them; the one in use is marked."""
    from fm.remote.contexts import Contexts

    known = Contexts.read()
    rows = [
        (("→" if name == known.current else "", name, one.url), {"name": name, "url": one.url}, name)
        for name, one in sorted(known.contexts.items())
    ]
    show_many(("", "NAME", "URL"), rows, output, quiet, none="no servers are known")


@context.command()
@click.argument("name")
def use(name: str) -> None:
    """Use the server NAME from now on; `local` means this machine's own runs."""
    from fm.remote.contexts import Contexts

    Contexts.read().using(None if name == _LOCAL else name).write()


@context.command()
@click.argument("name")
def rm(name: str) -> None:
    """Forget the server NAME and its token. The token itself stays good."""
    from fm.remote.contexts import Contexts

    Contexts.read().without(name).write()
