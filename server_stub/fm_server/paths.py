"""This machine's paths, which clients neither see nor name: what stands for them in records, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fm.backends.stored import StoreBackend
from fm.errors import NotFound, RequestError
from fm.layout import Storage
from fm.types import Caller, Checkpoint, DataRef, Event, ModelRef, ModelVersion, RunRecord

_STANDS_FOR = "<storage>"
_CHECKPOINT = re.compile(r"(run-[0-9a-z]{12})/([0-9]{1,9})/([0-9]{1,12})")


class Paths:
    """Hides the paths below one storage root."""

    def __init__(self, storage: Storage) -> None:
        self._root = storage.root
        # As they stand in JSON text, where quotes and backslashes in them are escaped.
        self._texts = [json.dumps(str(path))[1:-1] for path in (storage.root.resolve(), storage.root)]

    def hide(self, text: str) -> str:
        """`text` with no path of the storage root in it."""
        for root in self._texts:
            text = text.replace(root, _STANDS_FOR)
        return text

    def run(self, record: RunRecord) -> RunRecord:
        request = record.request
        if weights := request.custom_weights_path:
            request = request.model_copy(update={"custom_weights_path": self.checkpoint_ref(Path(weights))})
        return record.model_copy(
            update={
                "request": request,
                "model": self.model(record.model),
                "train_data": self.data(record.train_data),
                "eval_data": self.data(record.eval_data) if record.eval_data else None,
                "caller": record.caller.model_copy(update={"python": "", "env": {}}),
                "reason": self.hide(record.reason),
            }
        )

    def model(self, ref: ModelRef) -> ModelRef:
        base = self.model(ref.adapter_of) if ref.adapter_of else None
        return ref.model_copy(update={"path": None, "key": None, "adapter_of": base})

    def data(self, ref: DataRef) -> DataRef:
        return ref.model_copy(update={"path": Path(ref.path).name})

    def event(self, event: Event) -> Event:
        text = event.model_dump_json()
        hidden = self.hide(text)
        return event if hidden == text else Event.model_validate_json(hidden)

    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        ref = f"{checkpoint.run_id}/{checkpoint.attempt}/{checkpoint.step}"
        return checkpoint.model_copy(update={"path": ref})

    def version(self, version: ModelVersion) -> ModelVersion:
        lineage = json.loads(self.hide(json.dumps(version.lineage)))
        if "caller" in lineage:
            lineage["caller"] = Caller.model_validate(lineage["caller"] | {"python": "", "env": {}}).model_dump()
        return version.model_copy(
            update={
                "path": None, "key": "", "base": self.model(version.base) if version.base else None, "lineage": lineage,
            }
        )

    def checkpoint_ref(self, folder: Path) -> str:
        """What stands for the checkpoint in `folder`: run, attempt and step."""
        try:
            run, _, attempt, _, step = folder.relative_to(self._root / "runs").parts
            return f"{run}/{attempt}/{int(step.removeprefix('step-'))}"
        except ValueError:
            return _STANDS_FOR


def find_checkpoint(ref: str, backend: StoreBackend) -> str:
    """The folder of the whole checkpoint that `ref` stands for, of a run that the caller sees.

    Raises:
        RequestError: it stands for none, as a path does.
        NotFound: there is no such run or checkpoint.
    """
    match = _CHECKPOINT.fullmatch(ref)
    if not match:
        raise RequestError(
            f"custom_weights_path {ref!r} is no checkpoint of this server", field="custom_weights_path",
            hint="pass one of fm.get_checkpoints(run), or register the weights and train from that model",
        )
    for checkpoint in backend.runs.checkpoints(match[1]):
        if (checkpoint.attempt, checkpoint.step) == (int(match[2]), int(match[3])):
            return str(backend.runs.open_checkpoint(match[1], checkpoint.step))
    raise NotFound(f"run {match[1]} has no checkpoint {ref}", hint="fm.get_checkpoints(run) lists those that it has")
