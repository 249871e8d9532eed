"""``ftctl models``: the registry, and trying a model out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fm.cli.create import with_warnings
from fm.cli.render import output_options, show_many, show_one
from fm.display import age, human_bytes, plain

if TYPE_CHECKING:
    from fm.types import ModelVersion

_COLUMNS = ("MODEL", "KIND", "ALIASES", "BASE", "SIZE", "AGE", "RUN")
_AVAILABLE = ("NAME", "KIND", "CONTEXT", "DISPLAY NAME")


@click.group()
def models() -> None:
    """Registered models, and models to start from.

    MODEL is catalog.schema.model (its latest version), with @alias, or with /3 for version 3.
    """


@models.command("list")
@click.argument("pattern", required=False)
@click.option("--available", is_flag=True, help="All that create can start from: also presets and the local hub cache.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many, newest first.")
@output_options
def list_command(pattern: str | None, available: bool, limit: int, output: str, quiet: bool) -> None:
    """List registered versions whose name fits the glob PATTERN, newest first."""
    from fm.context import current

    if available:
        _list_available(output, quiet)
        return
    versions = current().models.list(name=pattern, limit=limit)
    rows = [(_cells(version), version.model_dump(mode="json"), version.ref) for version in versions]
    show_many(_COLUMNS, rows, output, quiet, none="no registered models")


@models.command()
@click.argument("model")
@output_options
def get(model: str, output: str, quiet: bool) -> None:
    """Show all that is recorded of a version: files, digests, lineage."""
    from fm.context import current

    version = current().models.get(model)
    show_one(version.model_dump(mode="json"), version.ref, output, quiet)


@models.command()
@click.argument("model")
@click.argument("alias")
@click.option("--remove", is_flag=True, help="Take the alias away.")
def alias(model: str, alias: str, remove: bool) -> None:
    """Point ALIAS at a version."""
    from fm.context import current

    version = current().models.alias(model, alias, remove=remove)
    verb = "no longer points" if remove else "points"
    click.echo(f"{version.name}@{alias} {verb} at {version.ref}", err=True)


@models.command()
@click.argument("model")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--merge", is_flag=True, help="Of an adapter, write the whole model with the adapter merged in.")
def export(model: str, out: Path, merge: bool) -> None:
    """Write a model to the folder OUT, as transformers reads it."""
    from fm.context import current
    from fm.models import export_model

    with with_warnings():
        click.echo(export_model(model, out, merge=merge, backend=current()))


@models.command()
@click.argument("model")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def rm(model: str, yes: bool) -> None:
    """Remove a version. One that others are based on can't be removed."""
    from fm.context import current

    backend = current()
    version = backend.models.get(model)
    if not yes:
        click.confirm(f"remove {version.ref} ({human_bytes(version.bytes)})?", abort=True, err=True)
    backend.models.delete(version.ref)
    click.echo(f"removed {version.ref}", err=True)


@models.command("try")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--chat/--complete", default=True, help="Answer as a chat, or go on from the text.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def try_model(model: str, prompt: str | None, chat: bool, device: str) -> None:
    """Let a model answer PROMPT; without one, talk to it line by line until Ctrl-D."""
    from fm.api.models import load

    opened = load(model, device=device)
    if prompt is not None:
        answer = opened.chat([{"role": "user", "content": prompt}]) if chat else opened.generate(prompt)
        click.echo(plain(answer))
        return
    turns: list[dict[str, str]] = []
    while (line := _ask()) is not None:
        if chat:
            turns.append({"role": "user", "content": line})
            turns.append({"role": "assistant", "content": opened.chat(turns)})
            click.echo(plain(turns[-1]["content"]))
        else:
            click.echo(plain(opened.generate(line)))


def _ask() -> str | None:
    click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _cells(version: ModelVersion) -> tuple[Any, ...]:
    base = version.base.name if version.base else ""
    size, since = human_bytes(version.bytes), age(version.created_at)
    return version.ref, version.kind, ", ".join(version.aliases), base, size, since, version.run_id or ""


def _list_available(output: str, quiet: bool) -> None:
    from dataclasses import asdict

    from fm.api.models import get_models

    rows = [
        ((model.name, model.kind, model.max_context_length or "", model.display_name), asdict(model), model.name)
        for model in get_models()
    ]
    show_many(_AVAILABLE, rows, output, quiet, none="no models")
