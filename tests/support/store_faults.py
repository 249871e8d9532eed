"""Faults of a run store in SQLite: writers that are killed, and a lock that somebody holds.

Used by `tests/faults/test_store_faults.py` with small numbers, and by `benchmarks/prove_server.py` with large ones.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fm.backends.base import PAGE_LIMIT, RunFilter
from fm.errors import StoreError
from fm.store.store import RunStore
from fm.types import Principal
from support.fresh import PROCESSES
from support.stores import new_run

ROOT = Principal(user="root")


def killed_writers(folder: Path, *, kills: int, seed: int = 1) -> dict[str, Any]:
    """Kills `kills` processes while they write runs one after the other: none that was acknowledged is lost, the
    database is whole, and each run's history has no gap."""
    file, chance = folder / "store.db", random.Random(seed)
    url = f"sqlite:///{file}"
    RunStore(url).close()
    acknowledged: set[str] = set()
    for number in range(kills):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        writer = PROCESSES.Process(target=_write_on, args=(url, number, theirs))
        writer.start()
        theirs.close()
        acknowledged.add(ours.recv())  # it writes
        time.sleep(chance.uniform(0.0, 0.03))
        writer.kill()
        with suppress(EOFError):
            while True:
                acknowledged.add(ours.recv())
        writer.join()
    store = RunStore(url)
    kept = _all_runs(store)
    gaps = sum([event.seq for event in store.events(run, 0, PAGE_LIMIT)] != [1] for run in kept)
    store.close()
    with sqlite3.connect(file) as connection:
        [integrity] = connection.execute("PRAGMA integrity_check").fetchone()
    lost = len(acknowledged - kept)
    return {
        "kills": kills, "acknowledged": len(acknowledged), "kept": len(kept), "lost": lost, "histories_with_gaps": gaps,
        "integrity": integrity, "holds": not lost and not gaps and integrity == "ok",
    }


def held_lock(folder: Path, *, seconds: float, writers: int = 16) -> dict[str, Any]:
    """Somebody holds the database's lock while `writers` write: whoever gives up says so, and who asks again with the
    same key makes one run, not two."""
    url = f"sqlite:///{folder / 'store.db'}"
    RunStore(url).close()
    gave_up: Counter[str] = Counter()

    def write(key: str) -> str:
        store = RunStore(url)
        try:
            while True:
                try:
                    return store.create(new_run(), key, ROOT).id
                except StoreError as error:
                    gave_up[type(error).__name__] += 1
        finally:
            store.close()

    holder = sqlite3.connect(folder / "store.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(writers) as pool:
        began = time.monotonic()
        made = [pool.submit(write, f"key-{number}") for number in range(writers)]
        time.sleep(seconds)
        waiting = sum(not future.done() for future in made)
        holder.execute("COMMIT")
        ids = {future.result() for future in made}
    holder.close()
    store = RunStore(url)
    kept = _all_runs(store)
    store.close()
    return {
        "writers": writers, "locked_seconds": seconds, "waited": waiting, "gave_up": gave_up.total(),
        "seconds": round(time.monotonic() - began, 1), "runs": len(kept),
        "holds": waiting == writers and len(ids) == writers and kept == ids,
    }


def _write_on(url: str, number: int, acknowledge: Connection) -> None:
    store, count = RunStore(url), 0
    while True:
        acknowledge.send(store.create(new_run(), f"{number}-{count}", ROOT).id)
        count += 1


def _all_runs(store: RunStore) -> set[str]:
    found: set[str] = set()
    cursor = None
    while page := store.list("local", RunFilter(limit=PAGE_LIMIT, cursor=cursor)):
        found |= {run.id for run in page}
        cursor = page[-1].id
    return found
