"""What ftctl itself costs: importing it, listing 10,000 runs, creating one. Prints ratios, writes JSON.

    python benchmarks/overhead.py --out overhead.json

Each figure is the median of 15 whole processes (of 15 calls for `create`), after one that is not counted. What is
compared is measured in turn, so that a machine whose speed drifts is as fast for the one as for the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPEATS = 15
RUNS = 10_000
IMPORT_LINE = "import click, rich.table, sqlalchemy, pydantic"


def in_turn(*measures: Callable[[], object]) -> list[list[float]]:
    """Wall-clock seconds of each of `measures`, one after the other, REPEATS times."""
    times: list[list[float]] = [[] for _ in measures]
    for turn in range(REPEATS + 1):
        for number, measure in enumerate(measures):
            before = time.perf_counter()
            measure()
            if turn:
                times[number].append(time.perf_counter() - before)
    return times


def process(*arguments: str) -> Callable[[], object]:
    """A whole process, as somebody at a prompt would wait for it."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def fill_store(url: str, count: int) -> None:
    """Stores `count` ended runs, as if made one a minute."""
    from sqlalchemy import insert

    from fm.lifecycle import Status
    from fm.request import TrainRequest
    from fm.store.database import Database
    from fm.store.schema import runs
    from fm.types import DataRef, ModelRef, RunRecord

    request = TrainRequest.build({"model": "fm/nano-llama", "train_data_path": "/data/train.jsonl", "method": "full"})
    first = datetime.now(UTC) - timedelta(minutes=count)
    rows = []
    for number in range(count):
        at = first + timedelta(minutes=number)
        record = RunRecord(
            id=f"run-{number:012}", name=f"bench-{number}", status=Status.COMPLETED, request=request,
            model=ModelRef(kind="preset", name="fm/nano-llama"), created_at=at, experiment_id=f"run-{number:012}",
            train_data=DataRef(path="/data/train.jsonl", digest="0" * 64, bytes=1000, rows=10), owner="bench",
        )
        rows.append(
            {
                "id": record.id, "name": record.name, "team": record.team, "owner": record.owner,
                "status": record.status.value, "experiment_id": record.experiment_id, "created_at": at.timestamp(),
                "idempotency_key": record.id, "record": record.model_dump_json(),
            }
        )
    database = Database(url)
    with database.write() as connection:
        connection.execute(insert(runs), rows)
    database.close()


def create_and_validate(folder: Path) -> list[list[float]]:
    """Seconds of `fm.create`, which starts an agent each time, and of `fm.validate` for the same request."""
    import psutil

    import fm

    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"p {n}", "response": f"r {n}"}) + "\n" for n in range(100)))
    request = {"model": "fm/nano-llama", "train_data_path": data, "task_type": "INSTRUCTION_FINETUNE", "method": "full"}
    homes = (str(folder / f"home-{number}") for number in itertools.count())

    def create() -> None:
        fm.create(**request)

    def fresh_home() -> None:
        """Ends the agent that the create before has started; what follows finds none."""
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os.environ["FM_HOME"] = next(homes)
        fm.list()

    os.environ["FM_AGENT"] = "auto"
    _, validating, creating = in_turn(fresh_home, lambda: fm.validate(**request), create)
    fresh_home()
    return [creating, validating]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ.update(FM_HOME=f"{name}/home", FM_AGENT="off")
        from fm.settings import Settings

        bare, ours = map(statistics.median, in_turn(process("-c", "pass"), process("-c", "import fm")))
        settings = Settings.read()
        settings.prepare_home()
        fill_store(settings.store_url, RUNS)
        ftctl = str(Path(sys.executable).with_name("ftctl"))
        pairs = in_turn(process(ftctl, "runs", "list"), process("-c", IMPORT_LINE))
        listing, imports = map(statistics.median, pairs)
        ratio = statistics.median(one / other for one, other in zip(*pairs, strict=True))
        created = create_and_validate(Path(name))
        creating = statistics.median(one - other for one, other in zip(*created, strict=True))
    figures = {
        "bare_python_s": round(bare, 4),
        "import_fm_s": round(ours, 4),
        "import_fm_adds_ms": round(1000 * (ours - bare), 1),
        "runs_list_s": round(listing, 4),
        "import_line_s": round(imports, 4),
        "runs_list_ratio": round(ratio, 3),
        "stored_runs": RUNS,
        "create_beyond_validation_ms": round(1000 * creating, 1),
        "repeats": REPEATS,
    }
    print(f"import fm adds {figures['import_fm_adds_ms']} ms to bare Python (at most 100)")
    print(f"runs list with {RUNS:,} runs takes {figures['runs_list_ratio']}x of `{IMPORT_LINE}` (at most 1.5)")
    print(f"fm.create takes {figures['create_beyond_validation_ms']} ms beyond validation (at most 300)")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
