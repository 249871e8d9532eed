"""What OpenAPI shows of each route: a body that it takes and an answer that it gives, made by their own models."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pydantic import BaseModel

from fm import wire
from fm.lifecycle import EventType, Status
from fm.request import TrainRequest
from fm.types import (
    Checkpoint,
    DataFile,
    DataRef,
    Dataset,
    Event,
    LogChunk,
    MetricRow,
    ModelRef,
    ModelVersion,
    RunRecord,
)

_AT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_MODEL = "main.support.bot"
_BASE = ModelRef(kind="preset", name="fm/nano-llama")
_REQUEST = TrainRequest.build(
    {
        "model": "fm/nano-llama", "train_data_path": "train.jsonl", "task_type": "INSTRUCTION_FINETUNE",
        "method": "full", "training_duration": "3ep", "register_to": _MODEL,
    }
)  # fmt: skip
_SENT = wire.Data(digest=_DIGEST, bytes=4096, rows=64)
_KEPT = DataRef(path="train.jsonl", digest=_DIGEST, bytes=4096, rows=64, stored=True)
_QUEUED = RunRecord(
    id="run-5q010nznxrn0", name="nano-llama-5q010n", status=Status.QUEUED, request=_REQUEST, team="red", owner="ada",
    model=_BASE, train_data=_KEPT, created_at=_AT,
)
_RUN = _QUEUED.model_copy(
    update={
        "status": Status.COMPLETED, "attempt": 1, "step": 12, "total_steps": 12, "epoch": 3.0, "tokens": 9216,
        "started_at": _AT + timedelta(seconds=5), "completed_at": _AT + timedelta(seconds=65), "running_seconds": 60.0,
        "checkpoint_step": 12, "registered_model": f"{_MODEL}/1",
    }
)  # fmt: skip
_STOPPED = _RUN.model_copy(update={"status": Status.STOPPED, "registered_model": None, "actor": "ada"})
_EVENT = Event(seq=7, type=EventType.TRAIN_STARTED, time=_AT, message="3ep, 12 steps", data={"step": 0}, attempt=1)
_FILES = {"config.json": _DIGEST, "model.safetensors": _DIGEST}
_VERSION = ModelVersion(
    name=_MODEL, version=1, kind="full", files=_FILES, bytes=479_000, run_id=_RUN.id, base=_BASE, aliases=("prod",),
    created_at=_RUN.completed_at or _AT, team="red",
)
_CHECKPOINT = Checkpoint(run_id=_RUN.id, step=12, path=None, created_at=_AT, attempt=1, bytes=958_000, files=_FILES)
_DATASET = Dataset(digest=_DIGEST, name="train.jsonl", bytes=4096, rows=64, owner="ada", team="red", created_at=_AT)
_METRIC = MetricRow(step=12, time=_AT, values={"loss/train/total": 1.25, "lr": 2e-5})
_FILE = DataFile("train.jsonl", 4096)
_INFO = wire.Info(
    version="0.1.0", routes=("GET /v1/runs", "POST /v1/runs"), user="ada", team="red", scopes=("read", "submit"),
    poll_seconds=0.5,
)


class Example(NamedTuple):
    """A body, and the answer to it; None where there is none, or none in JSON."""

    body: BaseModel | None = None
    answer: BaseModel | None = None


def _of(answer: BaseModel) -> Example:
    return Example(None, answer)


EXAMPLES: Mapping[tuple[str, str], Example] = {
    ("GET", "/v1"): _of(_INFO),
    ("POST", "/v1/validate"): Example(wire.Inquiry(request=_REQUEST), wire.Examined(request=_REQUEST, model=_BASE)),
    ("POST", "/v1/plan"): Example(wire.PlanInquiry(request=_REQUEST, train_data=_SENT, price_per_hour=2.5)),
    ("POST", "/v1/runs"): Example(wire.Submission(request=_REQUEST, train_data=_SENT), _QUEUED),
    ("GET", "/v1/runs"): _of(wire.RunPage(runs=(_RUN,), next_cursor=None)),
    ("GET", "/v1/runs/{run}"): _of(_RUN),
    ("POST", "/v1/runs/{run}/cancel"): Example(wire.Cancellation(reason="wrong data"), _STOPPED),
    ("POST", "/v1/runs/{run}/resume"): _of(_QUEUED.model_copy(update={"parent": "run-0hkz91ctn6pa"})),
    ("GET", "/v1/runs/{run}/events"): _of(wire.EventPage(events=(_EVENT,))),
    ("GET", "/v1/runs/{run}/metrics"): _of(wire.MetricPage(metrics=(_METRIC,))),
    ("GET", "/v1/runs/{run}/logs"): _of(LogChunk(text="loading\n", next_offset=8)),
    ("GET", "/v1/runs/{run}/checkpoints"): _of(wire.CheckpointPage(checkpoints=(_CHECKPOINT,))),
    ("GET", "/v1/models"): _of(wire.ModelPage(models=(_VERSION,))),
    ("GET", "/v1/models/version"): _of(_VERSION),
    ("POST", "/v1/models/alias"): Example(wire.AliasChange(ref=f"{_MODEL}/1", alias="prod"), _VERSION),
    ("GET", "/v1/datasets"): _of(wire.DatasetPage(datasets=(_DATASET,))),
    ("GET", "/v1/datasets/{digest}"): _of(_DATASET),
    ("POST", "/v1/datasets/{digest}"): Example(wire.Announcement(files=(_FILE,)), wire.Arrived(bytes=0)),
    ("PUT", "/v1/datasets/{digest}/parts/{offset}"): _of(wire.Arrived(bytes=4096)),
    ("POST", "/v1/datasets/{digest}/finish"): Example(wire.Naming(name="train.jsonl", rows=64), _DATASET),
    ("GET", "/v1/datasets/{digest}/files"): _of(wire.Listing(files=(_FILE,))),
}
"""Of every route with a body or an answer of its own in JSON. A plan is left to its schema: it is long."""


def add_examples(operation: dict[str, Any], example: Example) -> None:
    """Puts the example into an operation of OpenAPI."""
    if example.body:
        shown = example.body.model_dump(mode="json", exclude_unset=True)
        operation["requestBody"]["content"]["application/json"]["example"] = shown
    if example.answer:
        [good] = (found for status, found in operation["responses"].items() if status.startswith("2"))
        good["content"]["application/json"]["example"] = example.answer.model_dump(mode="json")
