"""Data sets: sent in parts, listed, handed out."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from fm.backends.base import PAGE_LIMIT
from fm.types import Dataset
from fm.wire import DIGEST, PREFIX, Announcement, Arrived, DatasetPage, Listing, Naming
from fm_server.answers import answer
from fm_server.ranges import send_file
from fm_server.routes import FILE, Limit, Mine, make_router

router = make_router("data sets")
DATASET = f"{PREFIX}/datasets/{{digest}}"
Digest = Annotated[str, Path(pattern=DIGEST, description="SHA-256 over names, sizes and bytes of all files.")]
_BLOCK = 1 << 20


@router.get(f"{PREFIX}/datasets", response_model=DatasetPage)
def list_datasets(mine: Mine, limit: Limit = PAGE_LIMIT) -> Response:
    """The team's data sets, newest first."""
    return answer(DatasetPage(datasets=tuple(mine.files.list(limit=limit))))


@router.get(DATASET, response_model=Dataset)
def get(digest: Digest, mine: Mine) -> Response:
    """A data set that has been sent."""
    return answer(mine.files.get(digest))


@router.delete(DATASET, status_code=204)
def delete(digest: Digest, mine: Mine) -> None:
    """Takes the data set from the team, unless a run that has not ended uses it."""
    mine.files.delete(digest)


@router.post(DATASET, response_model=Arrived)
def begin(digest: Digest, body: Announcement, mine: Mine) -> Response:
    """Begins to send a data set, or says how much of it has arrived: all, if the team has it already."""
    return answer(Arrived(bytes=mine.files.begin(digest, body.files)))


@router.put(f"{DATASET}/parts/{{offset}}", response_model=Arrived)
async def append(
    digest: Digest, offset: Annotated[int, Path(ge=0, le=2**62)], request: Request, mine: Mine
) -> Response:
    """Sends the bytes of all files, one after the other, from `offset` on. What came before a cut stays."""
    block, arrived = bytearray(), offset
    with suppress(ClientDisconnect):  # nobody reads the answer then
        async for piece in request.stream():
            block += piece
            if len(block) >= _BLOCK:
                arrived = await run_in_threadpool(mine.files.append, digest, arrived, bytes(block))
                block.clear()
    return answer(Arrived(bytes=await run_in_threadpool(mine.files.append, digest, arrived, bytes(block))))


@router.post(f"{DATASET}/finish", response_model=Dataset)
def finish(digest: Digest, body: Naming, mine: Mine) -> Response:
    """Keeps the data set that has been sent, if its bytes have the digest."""
    return answer(mine.files.finish(digest, name=body.name, rows=body.rows, sensitive=body.sensitive))


@router.get(f"{DATASET}/files", response_model=Listing)
def listing(digest: Digest, mine: Mine) -> Response:
    """The files of a data set."""
    return answer(Listing(files=tuple(mine.files.listing(digest))))


@router.get(f"{DATASET}/file", response_class=Response, responses=FILE)
def download(
    digest: Digest, mine: Mine, name: Annotated[str, Query(max_length=500)],
    wanted: Annotated[str, Header(alias="Range", max_length=100)] = "",
) -> Response:
    """One file of a data set that is not sensitive, or with `Range: bytes=a-b` a part of it."""
    return send_file(mine.files.read(digest, name), wanted)
