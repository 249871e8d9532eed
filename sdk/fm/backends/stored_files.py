"""The data sets of a backend over a run store: sent in parts to this machine, then kept in the file store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from fm.backends.base import PAGE_LIMIT
from fm.errors import NotFound
from fm.filestore import FileStore, FolderStore, missing
from fm.layout import Storage, data_key
from fm.store.store import RunStore
from fm.types import DataFile, DataRef, Dataset, Principal
from fm.uploads import Uploads


class StoreFiles:
    """Data sets of the principal's team.

    Two teams that have the same data share its bytes; each has to send them all the same, since knowing a digest is no
    proof of having the data.
    """

    def __init__(self, store: RunStore, files: FileStore, storage: Storage, principal: Principal) -> None:
        self._store = store
        self._files = files
        self._storage = storage
        self._who = principal
        self._uploads = Uploads(storage.uploads)

    def put(self, path: str, *, digest: str, bytes: int, rows: int | None) -> DataRef:
        from fm.data import locate
        from fm.sending import send

        ref = DataRef(path=path, digest=digest, bytes=bytes, rows=rows)
        shares_folder = isinstance(self._files, FolderStore) and self._files.root == self._storage.root
        if shares_folder or (source := locate(path, field="train_data_path")).is_hub:
            return ref  # agents read it from where it is; its digest says whether it is still what was checked
        send(self, source, digest, rows=rows)
        return ref.model_copy(update={"stored": True})

    def begin(self, digest: str, files: Sequence[DataFile]) -> int:
        announced = sum(file.bytes for file in files)
        if self._own(digest):
            return announced
        self._store.require_room(self._who.team, announced + self._uploads.announced(self._who.team, but=digest))
        return self._uploads.begin(self._who.team, digest, files)

    def append(self, digest: str, offset: int, part: bytes) -> int:
        return self._uploads.append(self._who.team, digest, offset, part)

    def finish(self, digest: str, *, name: str, rows: int | None = None, sensitive: bool = False) -> Dataset:
        if known := self._own(digest):  # another client was quicker, or it was finished before and the answer was lost
            self._uploads.discard(self._who.team, digest)
            if not sensitive or known.sensitive:
                return known
            return self._store.add_dataset(self._who, known.model_copy(update={"sensitive": True}))
        new = Dataset(
            digest=digest, name=name, bytes=0, rows=rows, sensitive=sensitive, owner=self._who.user,
            team=self._who.team, created_at=self._store.clock.now(),
        )
        with self._uploads.finish(self._who.team, digest) as folder:
            self._files.put(data_key(digest), folder, move=True)
            size = sum(file.bytes for file in self._files_of(digest))
            return self._store.add_dataset(self._who, new.model_copy(update={"bytes": size}))

    def get(self, digest: str) -> Dataset:
        return self._store.dataset(self._who.team, digest)

    def listing(self, digest: str) -> Sequence[DataFile]:
        return self._files_of(self.get(digest).digest)

    def read(self, digest: str, name: str, *, offset: int = 0) -> IO[bytes]:
        self._store.require_download(self._who, digest)
        return self._files.open(data_key(digest), f"files/{name}", offset=offset)

    def delete(self, digest: str) -> None:
        self._store.remove_dataset(self._who, digest)

    def _own(self, digest: str) -> Dataset | None:
        """The data set if the team has it itself: one that was granted may be taken back."""
        try:
            found = self.get(digest)
        except NotFound:
            return None
        return found if found.team == self._who.team else None

    def _files_of(self, digest: str) -> Sequence[DataFile]:
        manifest = self._files.manifest(data_key(digest))
        if manifest is None:
            raise missing(data_key(digest))
        return [DataFile(*entry) for entry in manifest["listing"]]

    def ref(self, digest: str) -> DataRef:
        """What a run refers to a data set of the team by."""
        found = self.get(digest)
        return DataRef(path=found.name, digest=digest, bytes=found.bytes, rows=found.rows, stored=True)

    def list(self, *, limit: int = PAGE_LIMIT) -> Sequence[Dataset]:
        return self._store.datasets(self._who.team, max(0, min(limit, PAGE_LIMIT)))


def bring_data(files: FileStore, data: DataRef) -> DataRef:
    """`data` with a path of this machine, where the file store has it; else as it is.

    Raises:
        NotFound: the file store lacks it.
    """
    if not data.stored:
        return data
    folder = files.fetch(data_key(data.digest)) / "files"
    found = sorted(folder.iterdir())
    return data.model_copy(update={"path": str(found[0] if len(found) == 1 else folder)})
