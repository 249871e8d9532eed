"""Killing parts of a local run with SIGKILL at random or chosen moments, and looking at what is left of it.

Used by `tests/faults` with a few trials of each kind, and by `benchmarks/prove.py` with many.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import fm
from fm.agent import processes
from fm.backends.base import RunFilter
from fm.backends.stored import StoreBackend
from fm.files import read_manifest
from fm.layout import Storage
from fm.lifecycle import EventType, Status
from fm.types import RunRecord

PATIENCE = 120.0
_REQUEST = {
    "model": "fm/nano-llama",
    "task_type": "INSTRUCTION_FINETUNE",
    "method": "full",
    "training_duration": "60ba",
    "batch_size": 8,
    "save_interval": "6ba",
    "learning_rate": 1e-3,
    "register_to": "main.kills.model",
}
_SCRIPT = """
import json, sys
import fm
print(fm.create(**json.loads(sys.argv[1])).id, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one kill: `hit` says whether the chosen moment was met, `attempts` how often training started."""

    kind: str
    hit: bool
    attempts: int
    runs: int
    seconds: float


class Victim:
    """A home with a local backend, whose processes are killed."""

    def __init__(self, backend: StoreBackend, home: Path, seed: int) -> None:
        self.backend = backend
        self.home = home
        self.storage = Storage(home)
        self.random = random.Random(seed)
        self.life = 7.0
        """Seconds from a training's start to its end; measured by `undisturbed`."""
        data = home / "kills.jsonl"
        rows = [{"prompt": f"what is {n} times {n}?\n", "response": f"it is {n * n}"} for n in range(64)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.request = {**_REQUEST, "train_data_path": str(data)}

    def script(self, **changes: object) -> subprocess.Popen[str]:
        """Starts a script that creates the run, as a user's would."""
        return subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, json.dumps({**self.request, **changes})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FM_HOME": str(self.home), "PYTHONWARNINGS": "ignore"},
        )

    def create(self) -> str:
        """Creates the run from a script of its own; returns its id."""
        out, err = self.script().communicate(timeout=PATIENCE)
        assert out.startswith("run-"), err
        return out.strip()

    def undisturbed(self) -> dict[str, str]:
        """Digests of the weights that a run without kills makes. How long its training lives is noted."""
        record = self.finish(self.create())
        assert record.started_at and record.completed_at
        self.life = (record.completed_at - record.started_at).total_seconds()
        return self.weights(record)

    def finish(self, run_id: str) -> RunRecord:
        """Asks after the run, as any verb does, until it has ended."""
        deadline = time.monotonic() + PATIENCE
        while not (record := self.backend.runs.get(run_id)).status.is_terminal():
            assert time.monotonic() < deadline, f"{record.name} is {record.status}: {record.reason}"
            time.sleep(0.1)
        return record

    def weights(self, record: RunRecord) -> dict[str, str]:
        """Digests of the registered weights."""
        assert record.registered_model is not None, record.reason
        files = self.backend.models.get(record.registered_model).files
        return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}

    # The moments at which something is killed

    def kill_trainer(self, run_id: str) -> bool:
        """Kills the training process at a random moment of its life."""
        identity = self._trainer(run_id)
        time.sleep(self.random.uniform(0.0, self.life))
        return _kill(identity)

    def kill_in_save(self, run_id: str) -> bool:
        """Kills the training process while it writes a checkpoint."""
        folder, wanted = self.storage.run(run_id).attempt(1).checkpoints, self.random.randint(1, 6)

        def writing() -> bool:
            names = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
            whole = {name for name in names if name.startswith("step-") and (folder / name / "manifest.json").exists()}
            return len(names - whole) > 0 and max(_steps(names), default=0) >= wanted

        return self._kill_trainer_when(run_id, writing)

    def kill_in_export(self, run_id: str) -> bool:
        """Kills the training process while it writes the final weights."""
        attempt = self.storage.run(run_id).attempt(1)
        started = lambda: any(path.name.startswith((".final", "final")) for path in attempt.path.glob("*"))  # noqa: E731
        return self._kill_trainer_when(run_id, started)

    def kill_in_registration(self, run_id: str) -> bool:
        """Kills the agent between the moving of the weights and the row that names them, or right after."""
        target = self.storage.model("main.kills.model", run_id)
        _wait_for(lambda: target.exists(), pause=0.0)
        time.sleep(self.random.choice((0.0, 0.0, 0.001, 0.005)))
        return self._kill_agents()

    def kill_agent(self, run_id: str) -> bool:
        """Kills the agent at a random moment of the run; now and then together with the training process."""
        _wait_for(lambda: bool(self.backend.store.agents()), pause=0.01)
        time.sleep(self.random.uniform(0.0, 8.0))
        hit = self._kill_agents()
        if self.random.random() < 0.3 and (identity := processes.leftover(self.storage.run(run_id).attempt(1))):
            _kill(identity)
        return hit

    def kill_script(self) -> tuple[list[str], bool]:
        """Kills the calling script around its create, and runs it again. Returns the ids of the runs that it made, and
        whether the kill fell before the create was acknowledged."""
        before = self._ids()
        script = self.script()
        time.sleep(self.random.uniform(0.15, 0.75))
        script.kill()
        out, _ = script.communicate()
        made = self._ids() - before
        unacknowledged = any((self.home / "pending").glob("*.json"))
        assert len(made) <= 1
        again = self.create()
        total = self._ids() - before
        if unacknowledged or not made:
            assert total == {again}, "the run of a create that was never acknowledged must not be doubled"
        else:
            assert len(total) == 2, "a script that is run again after its create was acknowledged makes a new run"
        return sorted(total), not out

    def _ids(self) -> set[str]:
        return {record.id for record in self.backend.runs.list(RunFilter(limit=1000))}

    def _trainer(self, run_id: str) -> dict[str, object]:
        folder = self.storage.run(run_id).attempt(1)
        _wait_for(lambda: processes.leftover(folder) is not None or self._ended(run_id), pause=0.005)
        return processes.leftover(folder) or {}

    def _kill_trainer_when(self, run_id: str, moment: Callable[[], bool]) -> bool:
        identity = self._trainer(run_id)
        _wait_for(lambda: moment() or not processes.is_alive(identity), pause=0.0)
        return _kill(identity)

    def _ended(self, run_id: str) -> bool:
        return self.backend.runs.get(run_id).status.is_terminal()

    def _kill_agents(self) -> bool:
        hits = []
        for agent in self.backend.store.agents():
            if psutil.pid_exists(agent.pid):
                os.kill(agent.pid, signal.SIGKILL)
                hits.append(agent.pid)
        return bool(hits)

    # What must hold afterwards

    def check(self, record: RunRecord, expected: dict[str, str]) -> None:
        """The run is COMPLETED once, with the weights that an undisturbed one makes, and nothing is left over."""
        assert record.status is Status.COMPLETED, f"{record.status}: {record.reason}"
        assert self.weights(record) == expected, "the weights differ from the undisturbed run's"
        events = list(self.backend.runs.events(record.id))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert sum(event.type is EventType.COMPLETED for event in events) == 1
        versions = [v for v in self.backend.models.list(name="main.kills.model") if v.run_id == record.id]
        assert len(versions) == 1 and read_manifest(Path(versions[0].path), verify=True)
        for _, attempt in self.storage.run(record.id).attempts():
            identity = processes.leftover(attempt)
            assert identity is None or not processes.is_alive(identity), f"{attempt.path} has a living process"


KINDS = ("trainer", "save", "export", "registration", "agent", "script")


def trials(victim: Victim, kind: str, count: int, expected: dict[str, str]) -> Iterator[Trial]:
    """Kills `count` times in the way of `kind`, and checks after each what is left."""
    for _ in range(count):
        started = time.monotonic()
        if kind == "script":
            ids, hit = victim.kill_script()
        else:
            ids = [victim.create()]
            kill = getattr(victim, f"kill_{kind}" if kind in ("trainer", "agent") else f"kill_in_{kind}")
            hit = kill(ids[0])
        attempts = 0
        for run_id in ids:
            record = victim.finish(run_id)
            victim.check(record, expected)
            attempts += record.attempt
            fm.delete(run_id, backend=victim.backend)
        yield Trial(kind, hit, attempts, len(ids), round(time.monotonic() - started, 1))


def _steps(names: set[str]) -> list[int]:
    return [int(found[1]) for name in names if (found := re.search(r"step-(\d+)", name))]


def _kill(identity: dict[str, object]) -> bool:
    if not identity or not processes.is_alive(identity):
        return False
    os.kill(int(str(identity["pid"])), signal.SIGKILL)
    return True


def _wait_for(condition: Callable[[], bool], *, pause: float) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the moment to kill at never came"
        time.sleep(pause)
