"""A TCP proxy that does to connections what networks do: cuts them, swallows replies, trickles, or holds its tongue."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Behaviour = Callable[[int, bytes], bytes]
"""What is left of a block on the n-th connection; where something is missing, the connection is cut there."""


@dataclass
class Proxy:
    """Forwards to the server at `target`; `request` and `reply` may be replaced while it runs."""

    target: str
    request: Behaviour = lambda _number, block: block
    reply: Behaviour = lambda _number, block: block
    connections: int = 0
    url: str = field(init=False, default="")


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy before the server at `target`, as long as the block lasts."""
    proxy = Proxy(target)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        threading.Thread(target=_accept, args=(listening, proxy), daemon=True).start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, proxy: Proxy) -> None:
    with suppress(OSError):
        while True:
            client, _ = listening.accept()
            proxy.connections += 1
            threading.Thread(target=_forward, args=(client, proxy, proxy.connections), daemon=True).start()


def _forward(client: socket.socket, proxy: Proxy, number: int) -> None:
    where = urlsplit(proxy.target)
    with suppress(OSError), client, socket.create_connection((where.hostname, where.port)) as server:
        threading.Thread(target=_pump, args=(client, server, proxy, number), daemon=True).start()
        while block := server.recv(65536):
            changed = proxy.reply(number, block)
            client.sendall(changed)
            if changed != block:
                break
        # Closing alone would not end a connection from which another thread still reads.
        client.shutdown(socket.SHUT_RDWR)
        server.shutdown(socket.SHUT_RDWR)


def _pump(client: socket.socket, server: socket.socket, proxy: Proxy, number: int) -> None:
    with suppress(OSError):
        while block := client.recv(65536):
            changed = proxy.request(number, block)
            server.sendall(changed)
            if changed != block:
                client.shutdown(socket.SHUT_RDWR)
                break
        server.shutdown(socket.SHUT_WR)
