"""Putting out what a training makes while it goes on, where the file store is another place than the working folder."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from fm.agent.errand import Errand
from fm.errors import FMError, NotFound
from fm.files import make_private, read_manifest
from fm.filestore import FileStore, copy_sealed
from fm.layout import StageFolder, Storage

logger = logging.getLogger("fm.agent")

RETRY_SECONDS = 10.0
"""How long to leave a file store alone that could not be reached."""


class Outbox:
    """Keeps an attempt's checkpoints in the file store the same as those in its folder: the newest first."""

    def __init__(self, files: FileStore, storage: Storage, attempt: StageFolder) -> None:
        self._files = files
        self._storage = storage
        self._attempt = attempt
        self._stored: frozenset[str] = frozenset()
        self._errand: Errand[frozenset[str]] | None = None
        self._not_before = 0.0

    def settle(self) -> bool:
        """Goes on putting out what is new. Returns whether there is nothing left to do."""
        if self._errand and self._errand.is_done:
            errand, self._errand = self._errand, None
            try:
                self._stored = errand.result()
            except (FMError, OSError) as error:
                # The training does not depend on it, and the next look tries again.
                logger.warning("checkpoints of %s are not put out: %s", self._attempt.path, error)
                self._not_before = time.monotonic() + RETRY_SECONDS
        if self._errand:
            return False
        whole = _whole(self._storage, self._attempt)
        if whole.keys() == self._stored:
            return True
        if time.monotonic() >= self._not_before:
            self._errand = Errand(lambda: self._put_out(whole), wait=False)
        return False

    def _put_out(self, whole: dict[str, Path]) -> frozenset[str]:
        stored = {*whole}
        for key in sorted(set(whole) - self._stored, reverse=True):
            # The trainer removes old checkpoints, and may do so while this one is read.
            held = self._attempt.outgoing / whole[key].name
            shutil.rmtree(held, ignore_errors=True)
            try:
                copy_sealed(whole[key], make_private(held))
            except NotFound:
                stored.discard(key)
                continue
            self._files.put(key, held, move=True)
        for key in self._files.list(self._storage.key(self._attempt.checkpoints)):
            if key not in whole:
                self._files.delete(key)
        return frozenset(stored)


def _whole(storage: Storage, attempt: StageFolder) -> dict[str, Path]:
    return {storage.key(path): path for path in attempt.checkpoints.glob("step-*") if read_manifest(path)}
