"""``ftctl agent``: the process that works on queued runs."""

from __future__ import annotations

import click


@click.command()
@click.option("--until-idle", is_flag=True, help="End once there has been no work for a while.")
def agent(until_idle: bool) -> None:
    """Work on queued runs until stopped. Trainings go on when it ends; the next agent takes them over.

    Other commands start an agent when one is needed; run this on a machine that is to have one for good.
    """
    from fm.agent.daemon import main

    main(forever=not until_idle)
