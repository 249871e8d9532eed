"""Seam 1 over HTTP: the mirror of `fm_server`. What it asks is answered by the server's own backend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from fm import wire
from fm.backends.base import PAGE_LIMIT, NewRun, RunFilter
from fm.creation import DryRun
from fm.data import locate
from fm.errors import Conflict, NotFound, Unsupported
from fm.lifecycle import Status
from fm.names import is_run_ref
from fm.pending import new_key
from fm.plans import Plan, PlanTask
from fm.progress import upload_progress
from fm.remote import downloads, stream
from fm.remote.client import CALL_SECONDS, SLOWEST, Call, Client
from fm.request import TrainRequest
from fm.resolve import is_path
from fm.sending import send
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
from fm.wire import DIGEST, PREFIX, Data

_LARGE = 50 << 30
"""Bytes that are allowed for where nobody knows how many there are."""


class RemoteBackend:
    """A server's runs, models and files, as its token may see them. Nothing is asked before the first question."""

    trains_here = False
    storage = None

    def __init__(self, client: Client, *, home: Path) -> None:
        """`home` is this machine's FM_HOME: for the keys of creates, and for models that were fetched."""
        self.name = client.url
        self.client = client
        self.pending = home / "pending"
        self.runs = RemoteRuns(client, home / "fetched")
        self.models = RemoteModels(client, home / "fetched")
        self.files = RemoteFiles(client)
        self.machine = RemoteMachine(client, self.files)
        self._info: wire.Info | None = None

    @property
    def info(self) -> wire.Info:
        """Who answers there, with which version, and for whom. Asked once."""
        if self._info is None:
            self._info = self.client.ask(wire.Info, Call("GET", PREFIX))
        return self._info

    @property
    def poll_seconds(self) -> float:
        return self.info.poll_seconds

    def close(self) -> None:
        self.client.close()


class RemoteRuns:
    """Runs of the token's team."""

    def __init__(self, client: Client, fetched: Path) -> None:
        self._client = client
        self._fetched = fetched

    def create(self, new: NewRun, *, idempotency_key: str) -> RunRecord:
        body = wire.Submission(
            request=new.request, model=new.model.name, train_data=Data.of(new.train_data),
            eval_data=Data.of(new.eval_data) if new.eval_data else None, launcher=new.launcher,
            priority=new.priority,
            caller=wire.Asker.of(new.caller), allow_oversize=new.allow_oversize,
        )
        return self._client.ask(RunRecord, Call("POST", f"{PREFIX}/runs", body=body, key=idempotency_key))

    def get(self, run: str) -> RunRecord:
        return self._client.ask(RunRecord, Call("GET", _path(run)))

    def list(self, filter: RunFilter) -> Sequence[RunRecord]:
        params: dict[str, Any] = {
            "status": [status.value for status in filter.statuses], "owner": [*filter.owners], "name": filter.name,
            "after": filter.after and filter.after.isoformat(), "before": filter.before and filter.before.isoformat(),
            "experiment_id": filter.experiment_id, "cursor": filter.cursor, "limit": max(0, filter.limit),
        }
        return self._client.ask(wire.RunPage, Call("GET", f"{PREFIX}/runs", params)).runs

    def events(self, run: str, *, after: int = 0, limit: int = PAGE_LIMIT) -> Sequence[Event]:
        params = {"after": after, "limit": max(0, limit)}
        return self._client.ask(wire.EventPage, Call("GET", _path(run, "events"), params)).events

    def follow(self, run: str, *, after: int = 0) -> Iterator[Event]:
        return stream.follow(self._client, _path(run, "stream"), after)

    def metrics(
        self, run: str, *, keys: Sequence[str] | None = None, after_step: int = -1, limit: int = PAGE_LIMIT
    ) -> Sequence[MetricRow]:
        if keys is not None and not keys:
            return []
        params = {"key": None if keys is None else [*keys], "after_step": after_step, "limit": max(0, limit)}
        return self._client.ask(wire.MetricPage, Call("GET", _path(run, "metrics"), params)).metrics

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        return self._client.ask(LogChunk, Call("GET", _path(run, "logs"), {"offset": offset}))

    def checkpoints(self, run: str) -> Sequence[Checkpoint]:
        return self._client.ask(wire.CheckpointPage, Call("GET", _path(run, "checkpoints"))).checkpoints

    def open_checkpoint(self, run: str, step: int) -> Path:
        found = {checkpoint.step: checkpoint for checkpoint in self.checkpoints(run)}
        if step not in found:
            raise NotFound(f"run {run} has no whole checkpoint of step {step}", hint="fm.get_checkpoints lists them")
        cache = self._fetched / found[step].run_id
        return downloads.fetch(self._client, self._source(run, step), found[step].files, cache, step=step)

    def read_checkpoint(self, run: str, step: int, name: str, *, offset: int = 0) -> IO[bytes]:
        return downloads.read(self._client, self._source(run, step), name, offset)

    def _source(self, run: str, step: int) -> downloads.Source:
        path = _path(run, f"checkpoints/{step}/file")
        return downloads.Source(path, {}, f"the checkpoint of step {step} of {run}")

    def cancel(self, run: str, *, reason: str = "") -> RunRecord:
        call = Call("POST", _path(run, "cancel"), body=wire.Cancellation(reason=reason), key=new_key())
        try:
            return self._client.ask(RunRecord, call)
        except Conflict as error:
            # An earlier attempt, whose answer was lost, may have been what stopped it.
            if error.attempts > 1 and (record := self.get(run)).status is Status.STOPPED:
                return record
            raise

    def resume(self, run: str, *, idempotency_key: str) -> RunRecord:
        return self._client.ask(RunRecord, Call("POST", _path(run, "resume"), key=idempotency_key))

    def delete(self, run: str) -> None:
        _gone(self._client, Call("DELETE", _path(run)))


class RemoteModels:
    """The registry, as the token's team sees it."""

    def __init__(self, client: Client, fetched: Path) -> None:
        self._client = client
        self._fetched = fetched

    def get(self, ref: str) -> ModelVersion:
        return self._client.ask(ModelVersion, Call("GET", f"{PREFIX}/models/version", {"ref": ref}))

    def list(self, *, name: str | None = None, limit: int = PAGE_LIMIT) -> Sequence[ModelVersion]:
        params = {"name": name, "limit": max(0, limit)}
        return self._client.ask(wire.ModelPage, Call("GET", f"{PREFIX}/models", params)).models

    def alias(self, ref: str, alias: str, *, remove: bool = False) -> ModelVersion:
        body = wire.AliasChange(ref=ref, alias=alias, remove=remove)
        return self._client.ask(ModelVersion, Call("POST", f"{PREFIX}/models/alias", body=body))

    def open(self, ref: str) -> Path:
        version = self.get(ref)
        cache = self._fetched / version.name
        return downloads.fetch(self._client, _of_model(version), version.files, cache, kind=version.kind)

    def read(self, ref: str, name: str, *, offset: int = 0) -> IO[bytes]:
        return downloads.read(self._client, _of_model(self.get(ref)), name, offset)

    def delete(self, ref: str) -> None:
        _gone(self._client, Call("DELETE", f"{PREFIX}/models/version", {"ref": ref}))


class RemoteFiles:
    """The data sets of the token's team."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def put(self, path: str, *, digest: str, bytes: int, rows: int | None) -> DataRef:
        source = locate(path, field="train_data_path")
        with upload_progress(source.name) as progress:
            send(self, source, digest, rows=rows, progress=progress)
        return DataRef(path=path, digest=digest, bytes=bytes, rows=rows, stored=True)

    def begin(self, digest: str, files: Sequence[DataFile]) -> int:
        body = wire.Announcement(files=tuple(files))
        return self._client.ask(wire.Arrived, Call("POST", _dataset(digest), body=body, key=new_key())).bytes

    def append(self, digest: str, offset: int, part: bytes) -> int:
        call = Call(
            "PUT", _dataset(digest, f"parts/{offset}"), content=lambda: iter([part]),
            headers={"Content-Length": str(len(part))}, seconds=CALL_SECONDS + len(part) / SLOWEST,
        )
        return self._client.ask(wire.Arrived, call).bytes

    def finish(self, digest: str, *, name: str, rows: int | None = None, sensitive: bool = False) -> Dataset:
        body = wire.Naming(name=name, rows=rows, sensitive=sensitive)
        call = Call("POST", _dataset(digest, "finish"), body=body, key=new_key(), seconds=_LARGE / SLOWEST)
        return self._client.ask(Dataset, call)

    def get(self, digest: str) -> Dataset:
        return self._client.ask(Dataset, Call("GET", _dataset(digest)))

    def list(self, *, limit: int = PAGE_LIMIT) -> Sequence[Dataset]:
        call = Call("GET", f"{PREFIX}/datasets", {"limit": max(0, limit)})
        return self._client.ask(wire.DatasetPage, call).datasets

    def listing(self, digest: str) -> Sequence[DataFile]:
        return self._client.ask(wire.Listing, Call("GET", _dataset(digest, "files"))).files

    def read(self, digest: str, name: str, *, offset: int = 0) -> IO[bytes]:
        source = downloads.Source(_dataset(digest, "file"), {}, f"data set {digest[:12]}…")
        return downloads.read(self._client, source, name, offset)

    def delete(self, digest: str) -> None:
        _gone(self._client, Call("DELETE", _dataset(digest)))


class RemoteMachine:
    """The server's machine, which resolves models and makes plans."""

    def __init__(self, client: Client, files: RemoteFiles) -> None:
        self._client = client
        self._files = files

    def examine(
        self, request: TrainRequest, launcher: str, *, plan_only: bool = False
    ) -> tuple[TrainRequest, ModelRef]:
        if is_path(request.model):
            raise Unsupported(
                f"model {request.model!r} is a folder of this machine, and the training runs on {self._client.url}",
                field="model", hint="train from a registered model, a preset or a hub name",
            )
        inquiry = wire.Inquiry(request=request, launcher=launcher, plan_only=plan_only)
        found = self._ask(inquiry)
        return found.request, found.model

    def admit(self, prepared: DryRun) -> None:
        inquiry = wire.Inquiry(
            request=prepared.request, launcher=prepared.launcher, train_data=Data.of(prepared.train_data),
            allow_oversize=prepared.allow_oversize,
        )
        self._ask(inquiry)

    def plan(self, task: PlanTask) -> Plan:
        data = task.train_data
        self._files.put(data.path, digest=data.digest, bytes=data.bytes, rows=data.rows)
        inquiry = wire.PlanInquiry(
            request=task.request, train_data=Data.of(data), device=task.device, device_memory=task.device_memory,
            price_per_hour=task.price_per_hour,
        )
        return self._client.ask(Plan, Call("POST", f"{PREFIX}/plan", body=inquiry, key=new_key()))

    def _ask(self, inquiry: wire.Inquiry) -> wire.Examined:
        return self._client.ask(wire.Examined, Call("POST", f"{PREFIX}/validate", body=inquiry, key=new_key()))


def _of_model(version: ModelVersion) -> downloads.Source:
    return downloads.Source(f"{PREFIX}/models/file", {"ref": version.ref}, version.ref)


def _dataset(digest: str, what: str = "") -> str:
    """The path of a data set, or of something of it. What is no digest never becomes part of a path."""
    if not re.fullmatch(DIGEST, digest):
        raise NotFound(f"there is no data set {digest!r}", hint="a data set is known by 64 hexadecimal digits")
    return f"{PREFIX}/datasets/{digest}" + (f"/{what}" if what else "")


def _path(run: str, what: str = "") -> str:
    """The path of a run, or of something of it. What can't name a run names none, and never becomes part of a path."""
    if not is_run_ref(run):
        raise NotFound(f"there is no run {run!r}", hint="`ftctl runs list` shows those that there are")
    return f"{PREFIX}/runs/{quote(run, safe='')}" + (f"/{what}" if what else "")


def _gone(client: Client, call: Call) -> None:
    """Removes something; that it is gone after a first answer was lost is no error."""
    try:
        client.send(call)
    except NotFound as error:
        if error.attempts < 2:
            raise
