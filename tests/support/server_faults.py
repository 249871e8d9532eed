"""Faults of a server and its queue, made as often as asked: lost replies, killed servers, killed and sleeping workers.

Used by `tests/faults/test_server_faults.py` with small numbers, and by `benchmarks/prove_server.py` with large ones.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fm
from fm.backends.base import RunFilter
from fm.clock import SystemClock
from fm.errors import Unavailable
from fm.lifecycle import EventType, Status
from fm.remote.backend import RemoteBackend
from fm.remote.client import Client
from fm.remote.opening import open_remote
from fm.store.store import RunStore
from fm.types import ALL_SCOPES, Event, Principal, RunRecord
from support.cutting import proxied
from support.data import many_pairs
from support.ftctl_server import server_process
from support.stores import new_run

PATIENCE = 1200.0
WORKERS = Path(__file__).with_name("server_workers.py")


def creates(folder: Path, database: str, *, count: int, threads: int, dropped: float) -> dict[str, Any]:
    """`count` creates from `threads` threads, while of all replies the share `dropped` is lost or cut on the way.

    Whoever gets no reply asks again with the same key, as `fm.create` does on a script's next start.
    """
    data, chance, losses = many_pairs(folder / "pairs.jsonl", 8), random.Random(1), Counter[str]()

    def lose(_number: int, block: bytes) -> bytes:
        if not block.startswith(b"HTTP/1.1") or chance.random() >= dropped:
            return block
        losses["replies"] += 1
        losses["of creates"] += block.startswith(b"HTTP/1.1 201")
        return block[: chance.choice((0, 0, 40))]

    options = ("--no-agent", "--database", database)
    with server_process(folder / "server", *options) as server, proxied(server.url) as proxy:
        proxy.reply = lose
        remotes = threading.local()

        def create(number: int) -> str:
            if not hasattr(remotes, "own"):
                client = Client(proxy.url, _token_of(database), sleep=lambda seconds: time.sleep(seconds / 20))
                remotes.own = RemoteBackend(client, home=folder / "client")
            while True:
                try:
                    return fm.create(
                        "fm/nano-llama", data, task_type="INSTRUCTION_FINETUNE", method="full", backend=remotes.own,
                        idempotency_key=f"create-{number}",
                    ).id
                except Unavailable:
                    losses["calls that gave up"] += 1

        with ThreadPoolExecutor(threads) as pool:
            told = list(pool.map(create, range(count)))
    store = RunStore(database)
    kept = [run.id for run in _all_runs(store)]
    store.close()
    return {
        "creates": count, "threads": threads, "replies_lost": losses["replies"],
        "replies_of_creates_lost": losses["of creates"], "calls_that_gave_up": losses["calls that gave up"],
        "runs": len(kept), "holds": len(kept) == count and sorted(kept) == sorted(told) and len(set(told)) == count,
    }


def follows(folder: Path, database: str, *, events: int, kills: int) -> dict[str, Any]:
    """A follower of `events` events, while the server is killed `kills` times and started again."""
    store = RunStore(database)
    run = store.create(new_run(), "k", Principal(user=getpass.getuser()))
    claimed = store.claim("writer", "here", free=1, total=1)
    assert claimed
    lease, seen, killed = claimed[1], list[int](), 0

    def write() -> None:
        for number in range(events):
            last = number == events - 1
            while number > len(seen) + 400 or (last and killed < kills):
                time.sleep(0.01)
            kind = EventType.FAILED if last else EventType.TRAIN_UPDATED
            store.save(lease, new_events=[Event(type=kind, time=store.clock.now(), message=f"event {number}")])

    with server_process(folder / "server", "--no-agent", "--database", database) as server:
        remote = open_remote(server.url)

        def kill() -> None:
            nonlocal killed
            for number in range(kills):
                while len(seen) < (number + 1) * events // (kills + 2):
                    time.sleep(0.001)
                server.stop(signal.SIGKILL)
                server.start()
                killed += 1

        for work in (write, kill):
            threading.Thread(target=work, daemon=True).start()
        for event in remote.runs.follow(run.id):
            seen.append(event.seq)
        remote.close()
    store.close()
    expected = list(range(1, events + 3))  # the run was created and claimed
    return {
        "events": len(expected), "kills": killed, "seen": len(seen), "repeated": len(seen) - len(set(seen)),
        "missing": len(set(expected) - set(seen)), "holds": seen == expected and killed == kills,
    }


def kills_of_workers(folder: Path, database: str, *, jobs: int, kills: int, workers: int) -> dict[str, Any]:
    """`jobs` runs that `workers` processes work off, of which `kills` are killed, each followed by another."""
    store, chance = RunStore(database), random.Random(2)
    for number in range(jobs):
        store.create(new_run(register_to="main.jobs.model"), f"job-{number}", Principal(user="tester"))
    killed, began = 0, time.monotonic()
    running = [_worker("work", database, folder, str(place)) for place in range(workers)]
    while (left := len(store.unfinished())) and time.monotonic() - began < PATIENCE:
        if killed < kills and jobs - left >= killed * jobs // (kills + 1):
            place = chance.randrange(workers)
            time.sleep(chance.uniform(0, 0.3))
            running[place].kill()
            running[place].wait()
            running[place] = _worker("work", database, folder, str(place))
            killed += 1
        time.sleep(0.02)
    for process in running:
        process.kill()
        process.wait()
    runs = _all_runs(store)
    stories = [_all_events(store, run.id) for run in runs]
    ends = Counter(sum(event.is_terminal_state() for event in story) for story in stories)
    gapless = all([event.seq for event in story] == list(range(1, len(story) + 1)) for story in stories)
    versions = Counter(version.run_id for version in store.models("local", "main.jobs.model", 1000))
    store.close()
    completed = sum(run.status is Status.COMPLETED for run in runs)
    return {
        "jobs": jobs, "workers_killed": killed, "completed": completed, "ended_once": ends[1],
        "registered_once": sum(count == 1 for count in versions.values()),
        "restarted": sum(run.attempt > 1 for run in runs), "histories_without_gaps": gapless,
        "holds": completed == ends[1] == len(versions) == sum(versions.values()) == jobs
        and killed == kills and gapless,
    }


def sleepers(folder: Path, database: str, *, tries: int) -> dict[str, Any]:
    """A worker that is stopped while it writes, and wakes after another one has taken its run: is any write accepted?

    The lease runs out in the eyes of the other one, whose clock is ahead. For PostgreSQL: on SQLite nobody can take a
    run from a worker that sleeps inside a transaction, since nobody else can write until it wakes.
    """
    store, later = RunStore(database), RunStore(database, _Ahead(timedelta(seconds=40)))
    for number in range(tries):
        store.create(new_run(), f"sleeper-{number}", Principal(user="tester"))
    chance, refused, taken, changed = random.Random(3), 0, 0, 0
    worker = _worker("sleep", database, folder, str(tries))
    assert worker.stdout
    for number in range(tries):
        run_id = json.loads(worker.stdout.readline())["claimed"]
        adopted = None
        while adopted is None:
            time.sleep(chance.uniform(0.002, 0.03))
            worker.send_signal(signal.SIGSTOP)
            time.sleep(0.005)
            # Stopped inside a transaction it holds the row, which PostgreSQL then passes over: it must move on first.
            adopted = {lease.run_id: lease for _, lease in later.adopt(f"other-{number}", "there")}.get(run_id)
            if adopted is None:
                worker.send_signal(signal.SIGCONT)
        before = _all_events(store, run_id)
        worker.send_signal(signal.SIGCONT)
        answer = json.loads(worker.stdout.readline())
        refused += len(answer["refused"]) == 5
        taken += len(answer["taken"])
        changed += _all_events(store, run_id) != before
        end = Event(type=EventType.FAILED, time=later.clock.now(), message="by its new owner")
        later.save(adopted, new_events=[end])
    worker.wait(60)
    store.close()
    later.close()
    return {
        "tries": tries, "all_refused": refused, "writes_taken": taken, "histories_changed": changed,
        "holds": refused == tries and taken == changed == 0,
    }


class _Ahead(SystemClock):
    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now(self) -> datetime:
        return super().now() + self._ahead


def _worker(kind: str, database: str, folder: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKERS), kind, database, str(folder), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())


def _token_of(database: str) -> str:
    store = RunStore(database)
    who = getpass.getuser()
    text = store.administration(Principal(user=who)).make_token("local", who, scopes=ALL_SCOPES).text
    store.close()
    return text


def _all_runs(store: RunStore) -> list[RunRecord]:
    found: list[RunRecord] = []
    while more := store.list("local", RunFilter(limit=1000, cursor=found[-1].id if found else None)):
        found += more
    return found


def _all_events(store: RunStore, run_id: str) -> list[Event]:
    found: list[Event] = []
    while more := store.events(run_id, found[-1].seq if found else 0, 1000):
        found += more
    return found


@contextmanager
def home_of(folder: Path) -> Iterator[None]:
    """HOME and FM_HOME below `folder`, so that no context file or store of the user is touched."""
    before = {name: os.environ.get(name) for name in ("HOME", "FM_HOME", "HF_HUB_OFFLINE")}
    os.environ.update(HOME=str(folder), FM_HOME=str(folder / "client"), HF_HUB_OFFLINE="1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
