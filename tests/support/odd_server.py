"""A server that answers as no healthy one would, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def odd_server(*pieces: bytes, pause: float = 0.0, repeat: bytes = b"") -> Iterator[str]:
    """A server that answers every connection with `pieces`, then `repeat` for ever, each after a pause."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
                while repeat:
                    connection.sendall(repeat)
                    time.sleep(pause)
                time.sleep(30)
            except OSError:
                return

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
