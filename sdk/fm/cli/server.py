"""``ftctl server``: the process that serves runs over HTTP."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--name", "names", multiple=True, help="Another name that it is reached under; may be repeated.")
@click.option("--tls-cert", "certificate", type=click.Path(exists=True, dir_okay=False), help="Certificate, PEM.")
@click.option("--tls-key", "key", type=click.Path(exists=True, dir_okay=False), help="Its private key, PEM.")
@click.option("--behind-proxy", "proxy", metavar="ADDRESS", help="A proxy that ends TLS; its forwarded headers count.")
@click.option("--database", metavar="URL", help="The run store (default: FM_STORE, else the one in FM_HOME).")
@click.option("--files", metavar="URL", help="The file store, for agents elsewhere (default: FM_FILES).")
@click.option("--agent/--no-agent", default=True, show_default=True, help="Train on this machine, too.")
def server(**options: object) -> None:
    """Serve this machine's runs over HTTP until stopped. Trainings go on when it ends.

    On loopback a token is made and kept in the user's own file, where `FM_BACKEND=http://127.0.0.1:8080` finds it. Any
    other address needs TLS or a proxy that ends it; tokens for it are made by `ftctl admin tokens make`.
    """
    import logging

    from fm.plugins import load

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    load("parts", "serve")(**options)
