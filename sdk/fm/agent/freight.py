"""What one run needs brought in before a stage, and put out while and after it trains.

Where the file store is the agent's own working folder, nothing is moved, and each answer comes at once. Where it is
elsewhere, threads do the moving, and the answers are "not yet" until they are done.
"""

from __future__ import annotations

from typing import Any

from fm.agent import registration
from fm.agent.errand import Errand
from fm.agent.inputs import Inputs, are_apart, bring_in
from fm.agent.outbox import Outbox
from fm.filestore import FileStore
from fm.layout import StageFolder, Storage
from fm.store.store import RunStore
from fm.types import Caller, ModelVersion, RunRecord


class Freight:
    """One run's files between the working folder and the file store."""

    def __init__(self, store: RunStore, files: FileStore, storage: Storage) -> None:
        self._store = store
        self._files = files
        self._storage = storage
        self._apart = are_apart(files, storage)
        self._inputs: Errand[Inputs] | None = None
        self._outbox: Outbox | None = None
        self._placing: Errand[dict[str, Any] | None] | None = None

    def inputs(self, run: RunRecord) -> Inputs | None:
        """What `run` reads, once it is on this machine; None as long as it is being brought.

        Raises:
            What `fm.agent.inputs.bring_in` raises.
        """
        if self._inputs is None:
            work = lambda: bring_in(self._store, self._files, self._storage, run)  # noqa: E731
            self._inputs = Errand(work, wait=not self._apart)
        return self._inputs.result() if self._inputs.is_done else None

    def is_lost(self, folder: StageFolder) -> bool:
        """Whether the process of a stage that has a handle works in a folder of another machine."""
        return self._apart and not folder.job.exists()

    def as_started_here(self, run: RunRecord) -> RunRecord:
        """`run` without its caller's interpreter and environment, where these are those of another machine."""
        return run.model_copy(update={"caller": Caller()}) if self._apart else run

    def is_put_out(self, attempt: StageFolder) -> bool:
        """Goes on putting out the checkpoints of the attempt. Returns whether all are out."""
        if not self._apart:
            return True
        self._outbox = self._outbox or Outbox(self._files, self._storage, attempt)
        return self._outbox.settle()

    def place(self, run: RunRecord, attempt: StageFolder) -> Errand[dict[str, Any] | None]:
        """Puts the final weights where the registry keeps them; its result is their manifest, None if they are not
        whole. One that failed is begun again."""
        if self._placing is None:
            key = registration.model_key(self._storage, run)
            self._placing = Errand(lambda: registration.place(self._files, key, attempt), wait=not self._apart)
        placing = self._placing
        if placing.is_done:
            self._placing = None
        return placing

    def version(self, run: RunRecord, manifest: dict[str, Any], facts: dict[str, Any]) -> ModelVersion | None:
        """The version to register for what has been placed; None if the run registers nothing."""
        key = registration.model_key(self._storage, run)
        return registration.describe(run, key, manifest, facts, self._store.clock.now())
