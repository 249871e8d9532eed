"""``ftctl plan``: what a training would need, from the same flags and file as ``ftctl create``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fm.cli.create import create_options, given_values
from fm.cli.render import output_options, table, to_json


@click.command()
@click.argument("model", required=False)
@click.argument("train_data_path", required=False)
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A YAML file with the "
              "parameters of fm.create; flags override it.")
@click.option("--price-per-hour", type=float, help="Of one device; the plan then says the cost.")
@click.option("--device", help="A GPU to plan for, such as H200, or cpu (default: what is here).")
@click.option("--device-memory", help="Of one device, such as 24GB (default: what the device has).")
@create_options
@output_options
def plan(
    file: Path | None, price_per_hour: float | None, device: str | None, device_memory: str | None, output: str,
    quiet: bool, **flags: Any,
) -> None:
    """Memory, steps, time and cost of fine-tuning MODEL on TRAIN_DATA_PATH, without loading weights.

    Takes what `ftctl create` takes. Shows every method and sharding, the one that was asked for marked with →.
    """
    from fm.api.plan import plan as make_plan
    from fm.display import one_line

    made = make_plan(
        **given_values(file, flags), price_per_hour=price_per_hour, device=device, device_memory=device_memory
    )
    if quiet:
        click.echo("fits" if made.fits else "does not fit")
    elif output == "table":
        width = max(len(name) for name, _ in made.summary())
        for name, value in made.summary():
            click.echo(f"{name:<{width}}  {one_line(value)}")
        click.echo("\nmemory of one device")
        table(*made.table())
        for title, texts in (("assumed", made.assumptions), ("advice", made.advice)):
            click.echo(f"\n{title}")
            for number, text in enumerate(texts, 1):
                click.echo(f"  {number}. {one_line(text)}")
    else:
        click.echo(to_json(made.model_dump(mode="json"), indent=2 if output == "json" else None))
