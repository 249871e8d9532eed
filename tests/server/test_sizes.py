"""Bodies of any size and number: the server's memory stays flat, and a trickle of parts ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx

from fm.remote.contexts import Contexts
from fm.testing.serving import Served
from support.ftctl_server import server_process
from support.server import ask


def test_large_parts_leave_the_servers_memory_flat(tmp_path: Path) -> None:
    part, way = 48 << 20, f"/v1/datasets/{1:064x}"
    with server_process(tmp_path / "served") as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert server.process
        client.headers["Authorization"] = f"Bearer {Contexts.read().token_for(server.url)}"
        files = {"files": [{"name": "d.jsonl", "bytes": 7 * part}]}
        assert client.post(way, json=files).status_code == 200
        peaks = []
        for number in range(4):
            answer = client.put(f"{way}/parts/{number * part}", content=blocks(part), timeout=60)
            assert answer.json() == {"bytes": (number + 1) * part}
            peaks.append(peak_kib(server.process.pid))
        # A body that lies about its length, or has none, is cut off where the limit is.
        assert client.put(f"{way}/parts/{4 * part}", content=blocks(80 << 20), timeout=60).status_code == 413
        peaks.append(peak_kib(server.process.pid))
    assert peaks[-1] - peaks[0] < 8 << 10, peaks
    assert peaks[-1] < 250 << 10, peaks


def test_an_upload_in_thousands_of_tiny_parts_is_refused(server: Served) -> None:
    way = f"/v1/datasets/{2:064x}"
    assert ask(server, "POST", way, json={"files": [{"name": "d.jsonl", "bytes": 5000}]}).status_code == 200
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        taken = 0
        while (answer := client.put(f"{way}/parts/{taken}", content=b"x")).status_code == 200:
            taken += 1
    assert (answer.status_code, answer.json()["code"]) == (400, "request_error")
    assert taken == 1000


def blocks(size: int) -> Iterator[bytes]:
    for _ in range(size >> 20):
        yield bytes(1 << 20)


def peak_kib(process: int) -> int:
    """The most memory that the process has held."""
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found)
