"""What a stage reads, brought to this machine before it starts: data, base model, and the checkpoint to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fm.backends.stored_files import bring_data
from fm.errors import Damaged, NotFound, RequestError
from fm.files import read_manifest
from fm.filestore import FileStore, FolderStore
from fm.layout import Storage, run_of
from fm.store.store import RunStore
from fm.types import DataRef, ModelRef, RunRecord


@dataclass(frozen=True, slots=True)
class Inputs:
    """The run's references with paths of this machine."""

    model: ModelRef
    train_data: DataRef
    eval_data: DataRef | None
    checkpoints: tuple[Path, ...]
    """Folders to look through for the newest whole one: of the run's attempts, and of the runs that it resumes."""


def are_apart(files: FileStore, storage: Storage) -> bool:
    """Whether the file store is another place than the working folder, so that files have to be moved."""
    return not (isinstance(files, FolderStore) and files.root == storage.root)


def bring_in(store: RunStore, files: FileStore, storage: Storage, run: RunRecord) -> Inputs:
    """Brings what `run` reads; what is here already is not brought again. May take long.

    Raises:
        NotFound: the file store lacks the data set or the model.
        RequestError: the model is a folder that is not on this machine.
        Unavailable: the file store can't be reached.
    """
    history = list(_history(store, run))
    here = [folder for one in history for folder in _checkpoint_folders(storage, one)]
    apart = are_apart(files, storage)
    weights = run.request.custom_weights_path
    if weights and not Path(weights).exists():
        raise RequestError(
            f"custom_weights_path {weights} is not on the machine that trains", field="custom_weights_path",
            hint="register these weights, and train from that model",
        )
    brought = _bring_checkpoint(files, storage, history, here) if apart else ()
    ids = [each.id for each in history]
    return Inputs(
        model=_bring_model(files, run.model, apart=apart),
        train_data=bring_data(files, run.train_data),
        eval_data=bring_data(files, run.eval_data) if run.eval_data else None,
        # The run's own before those of the runs that it resumes, wherever they come from.
        checkpoints=tuple(sorted((*here, *brought), key=lambda folder: ids.index(run_of(folder)))),
    )


def _history(store: RunStore, run: RunRecord) -> Iterator[RunRecord]:
    """`run`, and the runs from whose checkpoints it goes on."""
    while True:
        yield run
        try:
            run = store.find(run.team, run.parent or "")
        except NotFound:  # it resumes none, or one that has been deleted with its checkpoints
            return


def _checkpoint_folders(storage: Storage, run: RunRecord) -> Iterator[Path]:
    """The checkpoints in the working folder, whole or not."""
    for _, attempt in storage.run(run.id).attempts():
        yield from sorted(attempt.checkpoints.glob("step-*"), reverse=True)


def _bring_checkpoint(
    files: FileStore, storage: Storage, history: list[RunRecord], here: list[Path]
) -> Iterator[Path]:
    """The newest whole one of the file store, if newer than all that are whole here: another machine put it out."""
    newest = max((manifest.get("step", -1) for folder in here if (manifest := read_manifest(folder))), default=-1)
    stored = {
        int(key.rpartition("step-")[2]): key
        for run in reversed(history)
        for number in range(1, run.attempt + 1)
        for key in files.list(storage.key(storage.run(run.id).attempt(number).checkpoints))
        if "/step-" in key
    }
    for step in sorted(stored, reverse=True):
        if step <= newest:
            return
        try:
            folder = files.fetch(stored[step])
        except (NotFound, Damaged):  # half put out, or removed meanwhile, or damaged: the one before will do
            continue
        if read_manifest(folder, verify=True):
            yield folder
            return


def _bring_model(files: FileStore, model: ModelRef, *, apart: bool) -> ModelRef:
    if model.adapter_of:
        model = model.model_copy(update={"adapter_of": _bring_model(files, model.adapter_of, apart=apart)})
    if model.kind == "registered" and model.key:
        return model.model_copy(update={"path": str(files.fetch(model.key))})
    if apart and model.path and not Path(model.path).is_dir():
        if model.kind == "path":
            raise RequestError(
                f"model {model.name} is a folder that is not on the machine that trains", field="model",
                hint="use a registered model or a hub name, or put the folder there",
            )
        return model.model_copy(update={"path": None})  # the check fetches it from the hub
    return model
