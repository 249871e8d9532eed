"""What ftctl itself costs: importing it, listing 10,000 runs, creating one. Prints ratios, writes JSON.

    python benchmarks/overhead.py [overhead.json]

Each figure is the median of 15 whole processes (of 15 calls for `create`), after one that is not counted.
"""

from __future__ import annotations

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


def median(measure: Callable[[], object]) -> float:
    """Median wall-clock seconds of `measure`."""
    measure()
    times = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        measure()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def process(*arguments: str) -> Callable[[], object]:
    """A whole process, as somebody at a prompt would wait for it."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def fill_store() -> None:
    """Stores RUNS ended runs in FM_HOME, as if made one a minute."""
    from sqlalchemy import insert

    from fm.lifecycle import Status
    from fm.settings import Settings
    from fm.store.database import Database
    from fm.store.schema import runs
    from fm.types import DataRef, ModelRef, RunRecord, TrainRequest

    settings = Settings.read()
    settings.prepare_home()
    request = TrainRequest.build({"model": "fm/nano-llama", "train_data_path": "/data/train.jsonl", "method": "full"})
    first = datetime.now(UTC) - timedelta(minutes=RUNS)
    rows = []
    for number in range(RUNS):
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
    database = Database(settings.store_url)
    with database.write() as connection:
        connection.execute(insert(runs), rows)
    database.close()


def seconds_beyond_validation(folder: Path) -> float:
    """What `fm.create` takes beyond what `fm.validate` takes for the same request."""
    import fm

    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"p {n}", "response": f"r {n}"}) + "\n" for n in range(100)))
    request = {"model": "fm/nano-llama", "train_data_path": data, "task_type": "INSTRUCTION_FINETUNE", "method": "full"}
    return median(lambda: fm.create(**request)) - median(lambda: fm.validate(**request))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ.update(FM_HOME=f"{name}/home", FM_AGENT="off")
        bare, ours = median(process("-c", "pass")), median(process("-c", "import fm"))
        fill_store()
        listing = median(process(str(Path(sys.executable).with_name("ftctl")), "runs", "list"))
        imports = median(process("-c", IMPORT_LINE))
        creating = seconds_beyond_validation(Path(name))
    figures = {
        "bare_python_s": round(bare, 4),
        "import_fm_s": round(ours, 4),
        "import_fm_adds_ms": round(1000 * (ours - bare), 1),
        "runs_list_s": round(listing, 4),
        "import_line_s": round(imports, 4),
        "runs_list_ratio": round(listing / imports, 3),
        "stored_runs": RUNS,
        "create_beyond_validation_ms": round(1000 * creating, 1),
        "repeats": REPEATS,
    }
    print(f"import fm adds {figures['import_fm_adds_ms']} ms to bare Python (at most 100)")
    print(f"runs list with {RUNS:,} runs takes {figures['runs_list_ratio']}x of `{IMPORT_LINE}` (at most 1.5)")
    print(f"fm.create takes {figures['create_beyond_validation_ms']} ms beyond validation (at most 300)")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(figures, indent=1) + "\n")
    else:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
