"""Saving all that training goes on from, and finding the newest save that is whole.

A checkpoint holds the trainable weights and the optimiser's state as safetensors, and the position as JSON; never a
pickle. It needs no random state: every step draws its random numbers from the seed and the step's number.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from fm.errors import RequestError
from fm.files import atomic_folder, read_manifest, seal, write_json
from fm.layout import StageFolder, run_of
from fm_local.models.weights import save_tensors
from fm_local.trainer.optimizer import Optimizer, State
from fm_local.trainer.parts import gather, shape_of
from fm_local.trainer.schedule import Position

_WEIGHTS = "trainable.safetensors"
_OPTIMISER = "optimizer.safetensors"
_STATE = "state.json"

Named = Mapping[str, torch.nn.Parameter]


class Whole(NamedTuple):
    """What a training has learnt, with no trace of how many processes hold it."""

    weights: dict[str, torch.Tensor]
    optimizer: State


def collect(trainable: Named, optimizer: Optimizer) -> Whole:
    """Weights and optimiser's state, gathered in the first process. All processes have to call it."""
    return Whole(gather(trainable), optimizer.state())


def save(
    folder: StageFolder,
    at: Position,
    whole: Whole,
    *,
    same: Mapping[str, Any],
    metrics: Mapping[str, float],
    keep: int,
    protected: int | None,
) -> tuple[Path, int]:
    """Writes `whole` as the checkpoint after step `at.step`, all or nothing, and removes those before the last `keep`,
    except that of step `protected`.

    `same` is what a training that goes on from here must agree in. Returns the folder and its size in bytes.

    Raises:
        DiskFull: nothing of the new checkpoint remains, and the older ones are untouched.
    """
    target = folder.checkpoint(at.step)
    if read_manifest(target) is not None:
        return target, _size(target)
    shutil.rmtree(target, ignore_errors=True)
    with atomic_folder(target) as unfinished:
        save_tensors(unfinished / _WEIGHTS, whole.weights)
        save_tensors(unfinished / _OPTIMISER, whole.optimizer.tensors)
        write_json(
            unfinished / _STATE, {"position": asdict(at), "optimizer": whole.optimizer.scalars, "same": dict(same)}
        )
        seal(unfinished, kind="checkpoint", step=at.step, metrics=dict(metrics), saved_at=time.time())
    _remove_old(folder.checkpoints, keep, folder.checkpoint(protected or 0))
    return target, _size(target)


def newest_whole(folders: Iterable[str | Path]) -> Path | None:
    """The checkpoint of the highest step among `folders` whose files all have the digests of its manifest.

    A damaged one is passed over for the next older. Those of another run count only where the run that is named first
    has none: having gone back past checkpoints of the run that it resumes, it leaves them there, and they are spoilt.
    """
    manifests = {Path(folder): read_manifest(Path(folder)) for folder in folders}
    whole = {path: int(manifest.get("step", -1)) for path, manifest in manifests.items() if manifest}
    runs = list(dict.fromkeys(map(run_of, whole)))
    for path in sorted(whole, key=lambda path: (runs.index(run_of(path)), -whole[path])):
        if read_manifest(path, verify=True) is not None:
            return path
    return None


def restore(path: Path, trainable: Named, optimizer: Optimizer, *, same: Mapping[str, Any]) -> Position:
    """Puts weights and optimiser back as they were at `path`, whether or not they are sharded now or were then, and
    returns the position.

    Raises:
        RequestError: the checkpoint belongs to a training with other settings or other data.
    """
    state = json.loads((path / _STATE).read_text())
    differing = sorted(key for key in same if state["same"].get(key) != same[key])
    weights = load_file(path / _WEIGHTS)
    if not differing and {k: v.shape for k, v in weights.items()} != {k: shape_of(v) for k, v in trainable.items()}:
        differing = ["trainable parameters"]
    if differing:
        raise RequestError(
            f"checkpoint {path} belongs to a training with different {', '.join(differing)}",
            hint="resume with the request and data of the run that saved it, or start a new run",
        )
    optimizer.load(weights, State(load_file(path / _OPTIMISER), state["optimizer"]))
    return Position(**state["position"])


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def _remove_old(folder: Path, keep: int, protected: Path) -> None:
    whole: Sequence[Path] = sorted(path for path in folder.glob("step-*") if read_manifest(path) is not None)
    for path in whole[:-keep]:
        if path != protected:
            # Without its manifest a checkpoint does not exist: nobody finds one that is half removed.
            (path / "manifest.json").unlink()
            shutil.rmtree(path)
