"""Sealed folders, file stores to test on, and a real S3 server on loopback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fm.files import digest_file, make_private, seal

BUCKET = "ftctl"


def sealed(folder: Path, **texts: str) -> Path:
    """A sealed folder with a file of each text; the step 7 is noted in its manifest."""
    make_private(folder)
    for name, text in texts.items():
        (folder / name).write_text(text)
    seal(folder, step=7)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder`."""
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in folder.rglob("*") if file.is_file()}


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """URL of a bucket on an S3-compatible HTTP server; its address and credentials are in the environment meanwhile."""
    log, before = folder / "s3.log", dict(os.environ)
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=folder
        )
    try:
        port = _port_of(log, server)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")).close()
        yield f"s3://{BUCKET}/team"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.kill()
        server.wait()


_SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print("port", server.port, flush=True)
server.serve_forever()
"""


def _port_of(log: Path, server: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("port "):
                return int(line.split()[1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.05)
    raise AssertionError(log.read_text())
