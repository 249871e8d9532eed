"""``ftctl agent``: the process that works on queued runs."""

from __future__ import annotations

import click


@click.command()
@click.option("--until-idle", is_flag=True, help="End once there has been no work for a while.")
@click.option("--database", metavar="URL", help="The run store. Default: FM_STORE, which no list of processes shows.")
@click.option("--files", metavar="URL", help="The file store, a folder or as s3://bucket/prefix. Default: FM_FILES.")
@click.option("--launcher", default="process", metavar="NAME", help="What starts the runs that name none: process, "
              "or ray, on the cluster that FM_RAY_ADDRESS names.")
def agent(until_idle: bool, database: str | None, files: str | None, launcher: str) -> None:
    """Work on queued runs until stopped. Trainings go on when it ends; the next agent takes them over.

    Other commands start an agent when one is needed; run this on a machine that is to have one for good. One on another
    machine than the server's needs the server's database and a file store that both reach, and nothing else.
    """
    from fm.agent.daemon import main
    from fm.plugins import find
    from fm.settings import Settings

    find("launchers", launcher)
    main(Settings.read(store_url=database, files_url=files, launcher=launcher), forever=not until_idle)
