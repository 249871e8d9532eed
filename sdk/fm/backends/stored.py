"""A backend over a run store: what local and fake share, and what a server puts behind HTTP."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fm.backends.base import PAGE_LIMIT, NewRun, RunFilter
from fm.errors import Conflict, NotFound, Unavailable
from fm.files import disk_errors, read_manifest
from fm.layout import MANIFEST, Storage
from fm.lifecycle import EventType, Status
from fm.store.store import RunStore
from fm.types import Checkpoint, DataRef, Event, LogChunk, MetricRow, ModelVersion, Principal, RunRecord


class StoreBackend:
    """Seam 1 over a `RunStore` and a storage root.

    `tend` is called before every question about runs: it sees to it that somebody works on those that are unfinished.
    """

    trains_here = True
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
    ) -> None:
        self.name = name
        self.poll_seconds = poll_seconds
        self.principal = principal
        self.store = store
        self.storage = storage
        self.pending = pending
        self.tend = tend
        self.runs = StoreRuns(self)
        self.models = StoreModels(self)
        self.files = LocalFiles()

    def scoped(self, principal: Principal) -> StoreBackend:
        """The same backend, narrowed to what `principal` may see."""
        narrowed = StoreBackend(
            self.name,
            self.store,
            self.storage,
            principal,
            tend=self.tend,
            poll_seconds=self.poll_seconds,
            pending=self.pending,
        )
        narrowed.trains_here = self.trains_here
        return narrowed

    def close(self) -> None:
        self.store.close()


class StoreRuns:
    """Runs of the principal's team."""

    def __init__(self, backend: StoreBackend) -> None:
        self._backend = backend
        self._store = backend.store
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
        found: list[Checkpoint] = []
        for number, attempt in reversed(self._backend.storage.run(self.get(run).id).attempts()):
            folders = [(folder, read_manifest(folder)) for folder in attempt.checkpoints.glob("step-*")]
            found += [_checkpoint(folder, number, manifest) for folder, manifest in folders if manifest]
        return sorted(found, key=lambda checkpoint: checkpoint.created_at)

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
        )
        record = self._store.create(new, idempotency_key, self._backend.principal, parent=parent)
        self._backend.tend()
        return record

    def delete(self, run: str) -> None:
        # The row goes first: a folder without a row is garbage that `ftctl gc` finds, a row without a folder a lie.
        record = self._store.remove(self._backend.principal, run)
        with disk_errors(self._backend.storage.runs):
            shutil.rmtree(self._backend.storage.run(record.id).path, ignore_errors=True)


def _checkpoint(folder: Path, attempt: int, manifest: dict[str, object]) -> Checkpoint:
    return Checkpoint.model_validate(
        {
            "step": manifest["step"],
            "metrics": manifest.get("metrics", {}),
            "created_at": (folder / MANIFEST).stat().st_mtime,
            "path": str(folder),
            "attempt": attempt,
            "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),  # type: ignore[attr-defined]
        }
    )


class StoreModels:
    """The registry, as the principal's team sees it."""

    def __init__(self, backend: StoreBackend) -> None:
        self._store = backend.store
        self._who = backend.principal
        self._team = backend.principal.team

    def get(self, ref: str) -> ModelVersion:
        return self._store.model(self._team, ref)

    def list(self, *, name: str | None = None, limit: int = PAGE_LIMIT) -> Sequence[ModelVersion]:
        return self._store.models(self._team, name, max(0, min(limit, PAGE_LIMIT)))

    def alias(self, ref: str, alias: str, *, remove: bool = False) -> ModelVersion:
        return self._store.alias(self._who, ref, alias, remove=remove)

    def open(self, ref: str) -> Path:
        version = self.get(ref)
        folder = Path(version.path)
        if not folder.is_dir():
            raise NotFound(f"the files of {version.ref} are gone from {folder}", hint="set FM_RUNS to where they lie")
        if read_manifest(folder, verify=True) is None:
            remedy = f"fm.rerun({version.run_id!r}) makes them again" if version.run_id else "ask the team that owns it"
            raise Unavailable(f"the files of {version.ref} in {folder} are damaged", hint=remedy)
        self._store.note(self._who, "model.open", version.ref)
        return folder

    def delete(self, ref: str) -> None:
        version = self._store.remove_model(self._who, ref)
        with disk_errors(Path(version.path)):
            shutil.rmtree(version.path, ignore_errors=True)


class LocalFiles:
    """Data stays where it is; its digest says whether it is still what was checked."""

    def put(self, path: str, *, digest: str, bytes: int, rows: int | None) -> DataRef:
        return DataRef(path=path, digest=digest, bytes=bytes, rows=rows)
