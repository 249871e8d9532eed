"""A server on PostgreSQL under load: live events to 500 followers, 50 creates a second, a page of 100,000 runs.

    python benchmarks/server_load.py --out benchmarks/results/server_load.json

The server is a process of its own, `ftctl server`; the load comes from this one, on the same machine. Beside each
figure stands whose work the processor did meanwhile: what the load itself takes is not there for the server. Creates
are sent at their times whether or not earlier ones were answered, and each one's delay counts from when it was to be
sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

import httpx
import psutil
from overhead import fill_store
from prove_server import database

import fm
from fm.lifecycle import EventType
from fm.remote.contexts import Contexts
from fm.remote.opening import open_remote
from fm.store.store import RunStore
from fm.types import Event, Principal
from support.data import many_pairs
from support.ftctl_server import ServerProcess, server_process
from support.server_faults import home_of
from support.stores import new_run

FOLLOWED = 50
"""Runs that the followers share; each gets an event a second."""


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, p99 and greatest, in milliseconds."""
    ordered = sorted(seconds)
    at = {"median_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    last = len(ordered) - 1
    return {name: round(1000 * ordered[min(last, int(share * len(ordered)))], 1) for name, share in at.items()}


class Shares:
    """Whose work the processor did since this was made, as shares of all cores' time."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process
        self._processes = {"load_generator": psutil.Process(), "server": psutil.Process(server.process.pid)}
        self._before = {name: self._used(process) for name, process in self._processes.items()}
        self._all = self._busy()
        self._began = time.monotonic()

    def so_far(self) -> dict[str, float]:
        of = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        used = {name: self._used(process) - self._before[name] for name, process in self._processes.items()}
        # The database, and whatever else this machine does.
        used["others"] = max(0.0, self._busy() - self._all - sum(used.values()))
        return {name: round(seconds / of, 3) for name, seconds in used.items()}

    @staticmethod
    def _used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system + times.softirq)


async def follow(server: ServerProcess, token: str, run: str, delays: list[float]) -> None:
    """Reads a stream of events until it is cancelled; notes how long after its making each event came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f"GET /v1/runs/{run}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {") and b'"TRAIN_UPDATED"' in line:
                delays.append(time.time() - datetime.fromisoformat(json.loads(line[6:])["time"]).timestamp())
    finally:
        writer.close()


async def followed(server: ServerProcess, token: str, store: RunStore, followers: int, seconds: float) -> list[float]:
    """Delays of the events of `seconds`, at each of `followers`."""
    for number in range(FOLLOWED):
        store.create(new_run(), f"followed-{number}", Principal(user="tester"))
    leases = [claimed[1] for _ in range(FOLLOWED) if (claimed := store.claim("load", "here", free=1, total=1))]
    delays: list[float] = []
    tasks = [
        asyncio.create_task(follow(server, token, leases[number % FOLLOWED].run_id, delays))
        for number in range(followers)
    ]
    await asyncio.sleep(5)
    stop = threading.Event()

    def write() -> None:
        began = time.monotonic()
        for number in range(int(seconds * FOLLOWED)):
            stop.wait(max(0.0, began + number / FOLLOWED - time.monotonic()))
            event = Event(type=EventType.TRAIN_UPDATED, time=store.clock.now(), message=f"step {number}")
            store.save(leases[number % FOLLOWED], new_events=[event])

    await asyncio.to_thread(write)
    await asyncio.sleep(2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return delays


async def created(server: ServerProcess, token: str, body: dict[str, Any], rate: int, seconds: float) -> list[float]:
    """How long each of `rate` creates a second took to be answered."""
    delays: list[float] = []
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        began = time.monotonic() + 0.5

        async def create(number: int, *, counted: bool) -> None:
            due = began + number / rate
            await asyncio.sleep(due - time.monotonic())
            answer = await client.post("/v1/runs", json=body, headers={"Idempotency-Key": f"load-{number}"})
            assert answer.status_code == 201, answer.text
            if counted:
                delays.append(time.monotonic() - due)

        # The first second makes connections, and is not counted.
        await asyncio.gather(*(create(number, counted=number >= rate) for number in range(int((seconds + 1) * rate))))
    return delays


def paged(server: ServerProcess, token: str, runs: int) -> dict[str, dict[str, float]]:
    """A page of 100 runs: the newest, from the middle of the list, and those of one status."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        found = {}
        ways = {"newest": "", "from_the_middle": f"&cursor=run-{runs // 2:012}", "of_a_status": "&status=COMPLETED"}
        for name, condition in ways.items():
            times = []
            for _ in range(101):
                began = time.perf_counter()
                answer = client.get(f"/v1/runs?limit=100{condition}")
                times.append(time.perf_counter() - began)
                assert len(answer.json()["runs"]) == 100, answer.text[:300]
            found[name] = quantiles(times[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, default=500)
    parser.add_argument("--rate", type=int, default=50, help="creates a second")
    parser.add_argument("--runs", type=int, default=100_000, help="runs in the store when it is paged")
    parser.add_argument("--seconds", type=float, default=20, help="how long each load lasts")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load_average_before": round(os.getloadavg()[0], 1)}

    def measured(name: str, work: Callable[[], Any]) -> Any:
        shares = Shares(server)
        result = work()
        figures[name] = {"processor": shares.so_far()}
        return result

    with tempfile.TemporaryDirectory() as name, home_of(Path(name)), database() as url:
        folder, store = Path(name), RunStore(url)
        with server_process(folder / "server", "--no-agent", "--database", url) as server:
            remote = open_remote(server.url)
            token = Contexts.read().token_for(server.url) or ""
            first = fm.create(
                "fm/nano-llama", many_pairs(folder / "pairs.jsonl", 8), task_type="INSTRUCTION_FINETUNE",
                method="full", backend=remote,
            )
            data = first.record.train_data
            body = {
                "request": first.record.request.model_dump(mode="json"),
                "train_data": {"digest": data.digest, "bytes": data.bytes, "rows": data.rows},
            }
            first.cancel()

            def run(work: Coroutine[Any, Any, list[float]]) -> Callable[[], list[float]]:
                return lambda: asyncio.run(work)

            delays = measured("events", run(followed(server, token, store, options.followers, options.seconds)))
            expected = int(options.seconds * FOLLOWED) * options.followers // FOLLOWED
            figures["events"] |= {"followers": options.followers, "delivered": len(delays), "expected": expected}
            figures["events"] |= quantiles(delays)
            delays = measured("creates", run(created(server, token, body, options.rate, options.seconds)))
            figures["creates"] |= {"per_second": options.rate, "answered": len(delays), **quantiles(delays)}
            fill_store(url, options.runs)
            pages = measured("pages", lambda: paged(server, token, options.runs))
            figures["pages"] |= {"runs": options.runs, **pages}
        store.close()
    print(json.dumps(figures, indent=1))
    worst = max(page["median_ms"] for page in pages.values())
    print(f"events reach {options.followers} followers within {figures['events']['p99_ms']} ms (p99; at most 1000)")
    print(f"creates at {options.rate}/s take {figures['creates']['p99_ms']} ms (p99; at most 50)")
    print(f"a page of {options.runs:,} runs takes {worst} ms (median of the slowest kind; at most 50)")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
