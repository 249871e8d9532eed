"""``ftctl preflight``: a ladder of short trainings, from the same flags and file as ``ftctl create``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fm.cli.create import create_options, given_values, with_warnings
from fm.cli.render import output_options, table, to_json

_FAILED = 7
"""Exit code, as of a run that ended in FAILED: something was tried, and did not succeed."""


@click.command()
@click.argument("model", required=False)
@click.argument("train_data_path", required=False)
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A YAML file with the "
              "parameters of fm.create; flags override it.")
@create_options
@output_options
def preflight(file: Path | None, output: str, quiet: bool, **flags: Any) -> int:
    """Try what `ftctl create` would start, in some minutes: MODEL on a few rows of TRAIN_DATA_PATH.

    First one batch is to be learnt by heart; then come some steps with 1, 2, 4, … processes, and on a Ray cluster on 2,
    4, … nodes. The exit code is 0 if no rung failed, else 7. Nothing of it remains.
    """
    from fm.api.preflight import preflight as climb
    from fm.display import plain

    values = given_values(file, flags)
    with with_warnings():
        found = climb(**values)
    if quiet:
        click.echo("passed" if found.passed else "failed")
    elif output == "table":
        table(*found.table())
        click.echo()
        table(*found.trials())
        click.echo(f"\n{plain(found.conclusion())}")
    else:
        value = {**found.model_dump(mode="json"), "passed": found.passed}
        click.echo(to_json(value, indent=2 if output == "json" else None))
    return 0 if found.passed else _FAILED
