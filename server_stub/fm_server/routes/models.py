"""The registry, and the files of its versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query, Response

from fm.backends.base import PAGE_LIMIT
from fm.types import ModelVersion
from fm.wire import PREFIX, AliasChange, ModelPage
from fm_server.answers import answer
from fm_server.ranges import send_file
from fm_server.routes import FILE, Hidden, Limit, Mine, ModelName, make_router

router = make_router("models")


@router.get(f"{PREFIX}/models", response_model=ModelPage)
def list_versions(
    mine: Mine, paths: Hidden, name: Annotated[str | None, Query(max_length=500, description="A glob.")] = None,
    limit: Limit = PAGE_LIMIT,
) -> Response:
    """Registered versions, newest first."""
    return answer(ModelPage(models=tuple(map(paths.version, mine.models.list(name=name, limit=limit)))))


@router.get(f"{PREFIX}/models/version", response_model=ModelVersion)
def get(ref: ModelName, mine: Mine, paths: Hidden) -> Response:
    """A version with its files' digests and its lineage."""
    return answer(paths.version(mine.models.get(ref)))


@router.delete(f"{PREFIX}/models/version", status_code=204)
def delete(ref: ModelName, mine: Mine) -> None:
    """Removes a version that nothing is based on."""
    mine.models.delete(ref)


@router.post(f"{PREFIX}/models/alias", response_model=ModelVersion)
def alias(change: AliasChange, mine: Mine, paths: Hidden) -> Response:
    """Points an alias at a version, or takes it away."""
    return answer(paths.version(mine.models.alias(change.ref, change.alias, remove=change.remove)))


@router.get(f"{PREFIX}/models/file", response_class=Response, responses=FILE)
def download(
    ref: ModelName, mine: Mine, name: Annotated[str, Query(max_length=500)],
    wanted: Annotated[str, Header(alias="Range", max_length=100)] = "",
) -> Response:
    """One file of a version, or with `Range: bytes=a-b` a part of it."""
    version = mine.models.get(ref)
    return send_file(mine.models.read(version.ref, name), wanted, digest=version.files.get(name, ""))
