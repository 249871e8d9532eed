"""A backend over a run store: what local and fake share, and what a server puts behind HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from fm.backends.base import PAGE_LIMIT, NewRun, RunFilter
from fm.backends.stored_files import StoreFiles
from fm.errors import Conflict, NotFound, Unavailable
from fm.files import read_manifest
from fm.filestore import FileStore, FolderStore
from fm.layout import Storage
from fm.lifecycle import EventType, Status
from fm.store.store import RunStore
from fm.types import Checkpoint, Event, LogChunk, MetricRow, ModelVersion, Principal, RunRecord


class StoreBackend:
    """Seam 1 over a `RunStore`, a storage root and a file store, which is the storage root where none is given.

    `tend` is called before every question about runs: it sees to it that somebody works on those that are unfinished.
    """

    machine = None

    def __init__(
        self,
        name: str,
        store: RunStore,
        storage: Storage,
        principal: Principal,
        *,
        tend: Callable[[], None],
        poll_seconds: float,
        pending: Path | None = None,
        files: FileStore | None = None,
        trains_here: bool = True,
    ) -> None:
        self.name = name
        self.poll_seconds = poll_seconds
        self.principal = principal
        self.store = store
        self.storage = storage
        self.pending = pending
        self.tend = tend
        self.trains_here = trains_here
        self.filestore = files or FolderStore(storage.root)
        self.runs = StoreRuns(self)
        self.models = StoreModels(self)
        self.files = StoreFiles(store, self.filestore, storage, principal)

    def scoped(self, principal: Principal) -> StoreBackend:
        """The same backend, narrowed to what `principal` may see."""
        return StoreBackend(
            self.name,
            self.store,
            self.storage,
            principal,
            tend=self.tend,
            poll_seconds=self.poll_seconds,
            pending=self.pending,
            files=self.filestore,
            trains_here=self.trains_here,
        )

    def close(self) -> None:
        self.store.close()


class StoreRuns:
    """Runs of the principal's team."""

    def __init__(self, backend: StoreBackend) -> None:
        self._backend = backend
        self._store = backend.store
        self._files = backend.filestore
        self._team = backend.principal.team

    def create(self, new: NewRun, *, idempotency_key: str) -> RunRecord:
        record = self._store.create(new, idempotency_key, self._backend.principal)
        self._backend.tend()
        return record

    def get(self, run: str) -> RunRecord:
        self._backend.tend()
        return self._store.find(self._team, run)

    def list(self, filter: RunFilter) -> Sequence[RunRecord]:
        self._backend.tend()
        return self._store.list(self._team, filter)

    def events(self, run: str, *, after: int = 0, limit: int = PAGE_LIMIT) -> Sequence[Event]:
        return self._store.events(self.get(run).id, after, limit)

    def follow(self, run: str, *, after: int = 0) -> Iterator[Event]:
        run = self.get(run).id
        while True:
            page = self.events(run, after=after)
            yield from page
            if any(event.is_terminal_state() for event in page):
                return
            if page:
                after = page[-1].seq
            else:
                time.sleep(self._backend.poll_seconds)

    def metrics(
        self, run: str, *, keys: Sequence[str] | None = None, after_step: int = -1, limit: int = PAGE_LIMIT
    ) -> Sequence[MetricRow]:
        return self._store.metrics(self.get(run).id, keys, after_step, limit)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        return self._store.log(self.get(run).id, offset)

    def checkpoints(self, run: str) -> Sequence[Checkpoint]:
        found = [_checkpoint(self._files, number, key, manifest) for number, key, manifest in self._checkpoints(run)]
        return sorted(found, key=lambda checkpoint: checkpoint.created_at)

    def open_checkpoint(self, run: str, step: int) -> Path:
        folder = self._files.fetch(self._checkpoint_key(run, step))
        if read_manifest(folder, verify=True) is None:
            raise Unavailable(f"the checkpoint of step {step} in {folder} is damaged", hint="take the one before")
        self._store.note(self._backend.principal, "checkpoint.open", run, step=step)
        return folder

    def read_checkpoint(self, run: str, step: int, name: str, *, offset: int = 0) -> IO[bytes]:
        file = self._files.open(self._checkpoint_key(run, step), name, offset=offset)
        self._store.note(self._backend.principal, "checkpoint.open", run, step=step, file=name)
        return file

    def _checkpoint_key(self, run: str, step: int) -> str:
        keys = [key for _, key, manifest in self._checkpoints(run) if manifest["step"] == step]
        if not keys:
            raise NotFound(f"run {run} has no whole checkpoint of step {step}", hint="fm.get_checkpoints lists them")
        return keys[-1]

    def _checkpoints(self, run: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Attempt, key and manifest of each that is whole, those of later attempts last."""
        record, storage = self.get(run), self._backend.storage
        for number in range(1, record.attempt + 1):
            for key in self._files.list(storage.key(storage.run(record.id).attempt(number).checkpoints)):
                if "/step-" in key and (manifest := self._files.manifest(key)):
                    yield number, key, manifest

    def cancel(self, run: str, *, reason: str = "") -> RunRecord:
        who = self._backend.principal.user
        event = Event(
            type=EventType.CANCEL_REQUESTED,
            time=self._store.clock.now(),
            message=f"cancelled by {who}" + (f": {reason}" if reason else ""),
            data={"actor": who},
        )
        record = self._store.cancel(self._backend.principal, run, event)
        self._backend.tend()
        return record

    def resume(self, run: str, *, idempotency_key: str) -> RunRecord:
        parent = self.get(run)
        if parent.status not in (Status.STOPPED, Status.FAILED):
            raise Conflict(
                f"run {parent.name} is {parent.status.value}", hint="only a STOPPED or FAILED run can be resumed"
            )
        if not self.checkpoints(parent.id):
            raise Conflict(f"run {parent.name} has no whole checkpoint", hint=f"ftctl runs rerun {parent.name}")
        new = NewRun(
            request=parent.request.model_copy(update={"name": parent.name}),
            model=parent.model,
            train_data=parent.train_data,
            eval_data=parent.eval_data,
            caller=parent.caller,
            launcher=parent.launcher,
            experiment_id=parent.experiment_id,
            priority=parent.priority,
            allow_oversize=parent.allow_oversize,
        )
        record = self._store.create(new, idempotency_key, self._backend.principal, parent=parent)
        self._backend.tend()
        return record

    def delete(self, run: str) -> None:
        # The row goes first: a folder without a row is garbage that `ftctl gc` finds, a row without a folder a lie.
        record = self._store.remove(self._backend.principal, run)
        self._files.delete(self._backend.storage.key(self._backend.storage.run(record.id).path))


def _checkpoint(files: FileStore, attempt: int, key: str, manifest: dict[str, Any]) -> Checkpoint:
    return Checkpoint.model_validate(
        {
            "run_id": key.split("/")[1],
            "step": manifest["step"],
            "metrics": manifest.get("metrics", {}),
            "created_at": manifest["saved_at"],
            "path": str(files.local(key) or "") or None,
            "attempt": attempt,
            "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
        }
    )


class StoreModels:
    """The registry, as the principal's team sees it."""

    def __init__(self, backend: StoreBackend) -> None:
        self._store = backend.store
        self._who = backend.principal
        self._files = backend.filestore
        self._team = backend.principal.team

    def get(self, ref: str) -> ModelVersion:
        return self._located(self._store.model(self._team, ref))

    def list(self, *, name: str | None = None, limit: int = PAGE_LIMIT) -> Sequence[ModelVersion]:
        found = self._store.models(self._team, name, max(0, min(limit, PAGE_LIMIT)))
        return [self._located(version) for version in found]

    def alias(self, ref: str, alias: str, *, remove: bool = False) -> ModelVersion:
        return self._located(self._store.alias(self._who, ref, alias, remove=remove))

    def open(self, ref: str) -> Path:
        version = self.get(ref)
        try:
            folder = self._files.fetch(version.key)
        except NotFound as error:
            hint = "set FM_RUNS, or FM_FILES, to where they lie"
            raise NotFound(f"the files of {version.ref} are gone from {self._files.where}", hint=hint) from error
        if read_manifest(folder, verify=True) is None:
            remedy = f"fm.rerun({version.run_id!r}) makes them again" if version.run_id else "ask the team that owns it"
            raise Unavailable(f"the files of {version.ref} in {folder} are damaged", hint=remedy)
        self._store.note(self._who, "model.open", version.ref)
        return folder

    def read(self, ref: str, name: str, *, offset: int = 0) -> IO[bytes]:
        version = self.get(ref)
        file = self._files.open(version.key, name, offset=offset)
        self._store.note(self._who, "model.open", version.ref, file=name)
        return file

    def delete(self, ref: str) -> None:
        self._files.delete(self._store.remove_model(self._who, ref).key)

    def _located(self, version: ModelVersion) -> ModelVersion:
        here = self._files.local(version.key)
        return version.model_copy(update={"path": str(here) if here else None})
