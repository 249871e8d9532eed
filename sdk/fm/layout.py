"""Every folder and file name below the storage root, in one place.

::

    <storage root>                      FM_RUNS, or FM_HOME
    ├── runs/<run id>/                  RunFolder
    │   ├── placing.json                what each process got of a cluster that the request leaves open; on Ray
    │   ├── check/                      StageFolder: the data check and tokenisation
    │   └── attempts/<n>/               StageFolder: the n-th training start
    │       ├── job.json                what to do; written by the agent, read by the trainer
    │       ├── process.json            who does it: pid and its start time
    │       ├── events.jsonl            what happened
    │       ├── metrics.jsonl           figures by step
    │       ├── heartbeat.json          last step, when, and how long the next may take
    │       ├── log.txt                 what the process printed
    │       ├── order.txt               "stop" or "kill", for processes that no signal reaches; on Ray
    │       ├── ray/                    what Ray Train keeps of its own; on Ray
    │       ├── checkpoints/step-<n>/   whole if it has a manifest.json that fits
    │       ├── outgoing/               checkpoints on their way to a file store elsewhere
    │       ├── trackers/               what trackers such as TensorBoard write
    │       ├── ranks/<r>.jsonl         what process r took and computed, where the job asks for it
    │       └── final/                  the weights to register, with a manifest.json
    ├── models/<a.b.c>/<run id>/        the files of a registered version
    ├── data/<digest>/                  an uploaded data set: files/, with a manifest.json
    ├── uploads/<id>/                   data sets of which a part has arrived
    ├── cache/<key>/                    copies of what an object store has
    ├── preflights/<name>/              a storage root of its own while a preflight lasts
    └── shards/<digest>/                tokenised data, found again by digest

Run folders, models and data lie in the file store (`fm.filestore`), where their keys are their paths below the root. On
a single machine that is this very folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class StageFolder:
    """Where one process (the check, or one attempt at training) reads its job and writes all that it produces."""

    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def heartbeat(self) -> Path:
        return self.path / "heartbeat.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def order(self) -> Path:
        return self.path / "order.txt"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def outgoing(self) -> Path:
        return self.path / "outgoing"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers"

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    @property
    def final(self) -> Path:
        return self.path / "final"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after optimiser step `step`."""
        return self.checkpoints / f"step-{step:08d}"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """All that belongs to one run."""

    path: Path

    @property
    def placing(self) -> Path:
        return self.path / "placing.json"

    @property
    def check(self) -> StageFolder:
        return StageFolder(self.path / "check")

    def attempt(self, number: int) -> StageFolder:
        """The folder of the `number`-th training start, counted from 1."""
        return StageFolder(self.path / "attempts" / str(number))

    def attempts(self) -> list[tuple[int, StageFolder]]:
        """The attempts that have a folder, newest first."""
        parent = self.path / "attempts"
        numbers = [int(entry.name) for entry in parent.iterdir() if entry.name.isdigit()] if parent.is_dir() else []
        return [(number, self.attempt(number)) for number in sorted(numbers, reverse=True)]


def run_of(checkpoint: Path) -> str:
    """The id of the run to which the checkpoint in folder `checkpoint` belongs, below whichever root it lies."""
    return checkpoint.parents[3].name


@dataclass(frozen=True, slots=True)
class Storage:
    """The storage root: run folders, model files and tokenised data. May be shared between machines."""

    root: Path

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.root / "runs" / run_id)

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def model(self, name: str, run_id: str) -> Path:
        """Where the files of the version that `run_id` made of model `name` lie."""
        return self.models / name / run_id

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def key(self, path: Path) -> str:
        """What the file store calls `path`, a folder below the root."""
        return path.relative_to(self.root).as_posix()

    @property
    def preflights(self) -> Path:
        return self.root / "preflights"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def shard(self, digest: str) -> Path:
        return self.shards / digest


def data_key(digest: str) -> str:
    """What the file store calls the data set of that digest."""
    return f"data/{digest}"
