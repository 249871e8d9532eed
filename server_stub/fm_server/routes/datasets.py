"""Data sets on their way in."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request, Response

from fm.types import DataRef
from fm.wire import DIGEST, PREFIX, Data, FileNames
from fm_server import datasets
from fm_server.answers import answer
from fm_server.routes import Hidden, Mine, make_router

router = make_router("data sets")
DATASET = f"{PREFIX}/datasets/{{digest}}"
Digest = Annotated[str, Path(pattern=DIGEST, description="SHA-256 over names, sizes and bytes of all files.")]


@router.get(DATASET, response_model=DataRef)
def get(digest: Digest, mine: Mine, paths: Hidden) -> Response:
    """The data set, if it has been sent."""
    return answer(paths.data(datasets.find(mine, Data(digest=digest, bytes=0))))


@router.put(f"{DATASET}/files/{{name}}", status_code=204)
async def put(digest: Digest, name: Annotated[str, Path(max_length=255)], request: Request, mine: Mine) -> None:
    """Sends a file of a data set."""
    await datasets.receive(mine, digest, name, request.stream())


@router.post(DATASET, response_model=DataRef)
def finish(digest: Digest, body: FileNames, mine: Mine, paths: Hidden) -> Response:
    """Takes in the data set whose files have been sent, if they make its digest."""
    datasets.finish(mine, digest, body.files)
    return answer(paths.data(datasets.find(mine, Data(digest=digest, bytes=0))))
