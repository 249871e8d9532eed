"""From a finished attempt's weights to a registered version: bytes first, then the row that names them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fm.files import read_manifest
from fm.filestore import FileStore
from fm.layout import StageFolder, Storage
from fm.types import ModelVersion, RunRecord


def version_name(run: RunRecord) -> str | None:
    """The registered name of what `run` makes: `register_to`, with the run's name where that is only a schema."""
    target = run.request.register_to
    if target and target.count(".") == 1:
        return f"{target}.{run.name.replace('.', '-')}"
    return target


def model_key(storage: Storage, run: RunRecord) -> str | None:
    """What the file store calls the weights that `run` makes; None if it registers nothing."""
    name = version_name(run)
    return storage.key(storage.model(name, run.id)) if name else None


def place(files: FileStore, key: str | None, attempt: StageFolder) -> dict[str, Any] | None:
    """Moves the attempt's final weights to `key` of the file store, and returns their manifest.

    Can be repeated: what an agent that died had moved already is found in its place. None if the weights are not whole,
    by their sizes: who sealed them synced and digested them, and reading gigabytes once more would take an agent longer
    than its leases last.
    """
    final = read_manifest(attempt.final)
    if key is None:
        return final
    if final and files.manifest(key) is None:
        files.put(key, attempt.final, move=True)
    return files.manifest(key)


def describe(
    run: RunRecord, key: str | None, manifest: dict[str, Any], facts: dict[str, Any], now: datetime
) -> ModelVersion | None:
    """The version that lies under `key`, to be numbered by the registry; None if the run registers nothing.

    `facts` is what check and trainer reported: the base's digest, versions, device, precision, the last metrics.
    """
    name = version_name(run)
    if name is None or key is None:
        return None
    files = manifest["files"]
    lineage = {
        "request": run.request.model_dump(mode="json"),
        "train_data": run.train_data.model_dump(mode="json"),
        "eval_data": run.eval_data and run.eval_data.model_dump(mode="json"),
        "counts": run.counts and run.counts.model_dump(),
        "caller": run.caller.model_dump(),
        "run": {"id": run.id, "name": run.name, "parent": run.parent, "attempts": run.attempt},
        **facts,
    }
    return ModelVersion(
        name=name,
        version=0,
        kind=manifest["kind"],
        key=key,
        files={file: entry["sha256"] for file, entry in files.items()},
        bytes=sum(entry["bytes"] for entry in files.values()),
        run_id=run.id,
        # Training on an adapter continues it as a copy: the result's base is the adapter's own.
        base=run.model.adapter_of or run.model,
        base_digest=facts.get("base_digest"),
        lineage=lineage,
        created_at=now,
        team=run.team,
    )
