"""The application on a socket: in this thread until it is told to stop, or in a thread of its own beside a test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from fm.backends.stored import StoreBackend
from fm.errors import Unavailable
from fm_server.app import make_app

_BACKLOG = 2048
_GRACE_SECONDS = 10
"""What requests in flight get to end once the server is to stop. Streams of events end at once."""


class Server(uvicorn.Server):
    """A uvicorn server that ends its streams of events when it is to stop, instead of waiting for them."""

    def __init__(
        self, app: FastAPI, *, certificate: str | None = None, key: str | None = None, proxies: str | None = None
    ) -> None:
        """`certificate` and `key` are files in PEM form; `proxies` are the addresses whose forwarded headers count."""
        super().__init__(
            uvicorn.Config(
                app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
                server_header=False, timeout_graceful_shutdown=_GRACE_SECONDS, ssl_certfile=certificate,
                ssl_keyfile=key, proxy_headers=proxies is not None, forwarded_allow_ips=proxies or "",
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.feed.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        Unavailable: the address can't be had.
    """
    # Named as TCP, since asyncio turns off the delay of small packets, 40 ms an answer, for such sockets only.
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise Unavailable(
            f"can't listen on {host}:{port}: {error.strerror}", hint="choose another port with --port"
        ) from error
    return listening


@contextmanager
def serve_in_background(backend: StoreBackend, *, port: int = 0) -> Iterator[str]:
    """Serves `backend` on loopback, in a thread of its own, as long as the block lasts; yields its URL."""
    listening = listen("127.0.0.1", port)
    server = Server(make_app(backend))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="fm-server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
