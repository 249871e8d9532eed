"""`ftctl server` as a process that can be killed, on one port and one store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

PATIENCE = 60.0


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@dataclass
class ServerProcess:
    """Starts with `start`; `home` is its FM_HOME. Its user's home is the test's own."""

    home: Path
    options: tuple[str, ...] = ("--no-agent",)
    port: int = field(default_factory=free_port)
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns once it answers."""
        command = [sys.executable, "-m", "fm.cli.main", "server", "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, env={**os.environ, "FM_HOME": str(self.home)})
        authorities = httpx.create_ssl_context()  # those of SSL_CERT_FILE, too
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/healthz", trust_env=False, verify=authorities).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server does not answer: exit code {self.process.poll()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends it the signal, and returns its exit code."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def server_process(home: Path, *options: str, scheme: str = "http") -> Iterator[ServerProcess]:
    """A server that runs; killed at the end if it still does."""
    server = ServerProcess(home, options or ("--no-agent",), scheme=scheme)
    server.start()
    try:
        yield server
    finally:
        if server.process and server.process.poll() is None:
            server.stop(signal.SIGKILL)
