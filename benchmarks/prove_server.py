"""The long proofs of the server and its queue, on a real PostgreSQL: lost replies, kills, sleepers, random requests.

    python benchmarks/prove_server.py                     # all of it: a quarter of an hour on two cores
    python benchmarks/prove_server.py follows --kills 5   # one part

Figures go to `benchmarks/proof.json`; the exit code is 1 if a part does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

from proving import prove

from fm.testing import serve
from support import server_faults as faults
from support import store_faults
from support.cut_uploads import cut_uploads
from support.fuzzing import fuzz
from support.stores import fresh_database, postgres_server


def prove_fuzz(folder: Path, cases: int) -> dict[str, Any]:
    """`cases` random cases against the OpenAPI, as users of two teams; each round has a server and a seed."""
    tried, rounds, failures = 0, 0, dict[str, list[str]]()
    while tried < cases:
        rounds += 1
        with faults.home_of(folder), serve() as server:
            found = fuzz(server, folder / str(rounds), examples=100, seed=rounds)
        tried += found.cases
        for kind, operations in found.failures.items():
            failures.setdefault(kind, []).extend(operations)
        print(f"{tried:,} cases, failures: {failures}", flush=True)
    return {"cases": tried, "rounds": rounds, "failures": failures, "holds": not failures}


def prove_store(folder: Path, kills: int) -> dict[str, Any]:
    """A store in SQLite, of which `kills` writers are killed, and one that is locked for half a minute."""
    (folder / "locked").mkdir()
    killed = store_faults.killed_writers(folder, kills=kills)
    locked = store_faults.held_lock(folder / "locked", seconds=30)
    print(killed, locked, flush=True)
    return {"killed_writers": killed, "held_lock": locked, "holds": killed["holds"] and locked["holds"]}


def prove_uploads(folder: Path, count: int) -> dict[str, Any]:
    """`count` uploads that are cut at random points: what arrives is what was sent, byte for byte."""
    with faults.home_of(folder):
        figures = cut_uploads(folder, count=count, kills=count // 10, most_bytes=16 << 20)
    print(figures, flush=True)
    return figures


@contextmanager
def database() -> Iterator[str]:
    """URL of a fresh database on a PostgreSQL of its own."""
    with tempfile.TemporaryDirectory(prefix="fm-postgres-") as folder, postgres_server(Path(folder) / "data") as url:
        yield fresh_database(url)


def on_postgres(part: Callable[..., dict[str, Any]], **numbers: Any) -> Callable[[Path], dict[str, Any]]:
    """`part`, as it is run in a folder."""

    def run(folder: Path) -> dict[str, Any]:
        with faults.home_of(folder), database() as url:
            figures = part(folder, url, **numbers)
        print(figures, flush=True)
        return figures

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["creates", "follows", "workers", "sleepers", "store", "uploads", "fuzz"]
    parser.add_argument("parts", nargs="*", choices=[*names, []], help="which parts (default: all)")
    parser.add_argument("--creates", type=int, default=200, help="creates whose replies are lost")
    parser.add_argument("--kills", type=int, default=50, help="kills of the server, each in 100 events")
    parser.add_argument("--workers", type=int, default=20, help="kills of workers in 25 times as many jobs")
    parser.add_argument("--tries", type=int, default=100, help="workers that sleep past their lease")
    parser.add_argument("--writers", type=int, default=1000, help="kills of processes that write to a store in SQLite")
    parser.add_argument("--uploads", type=int, default=200, help="uploads that are cut, a tenth by killing the server")
    parser.add_argument("--cases", type=int, default=20_000, help="random cases against the OpenAPI")
    options = parser.parse_args()
    return prove(
        {
            "creates": on_postgres(faults.creates, count=options.creates, threads=8, dropped=0.3),
            "follows": on_postgres(faults.follows, events=100 * options.kills, kills=options.kills),
            "workers": on_postgres(
                faults.kills_of_workers, jobs=25 * options.workers, kills=options.workers, workers=4
            ),
            "sleepers": on_postgres(faults.sleepers, tries=options.tries),
            "store": lambda folder: prove_store(folder, options.writers),
            "uploads": lambda folder: prove_uploads(folder, options.uploads),
            "fuzz": lambda folder: prove_fuzz(folder, options.cases),
        },
        options.parts,
    )


if __name__ == "__main__":
    sys.exit(main())
