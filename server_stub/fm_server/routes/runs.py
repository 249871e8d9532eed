"""Runs: making, finding and acting on them, and what happened in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Header, Path, Query, Request, Response
from pydantic import BeforeValidator
from starlette.responses import StreamingResponse

from fm.backends.base import PAGE_LIMIT, RunFilter
from fm.lifecycle import Status
from fm.types import LogChunk, MetricRow, RunRecord
from fm.wire import PREFIX, Cancellation, CheckpointPage, EventPage, MetricPage, RunPage, Submission
from fm_server import submission
from fm_server.answers import answer
from fm_server.ranges import send_file, thinned
from fm_server.routes import FILE, After, Hidden, Limit, Mine, RunRef, make_router

router = make_router("runs")
RUNS, RUN = f"{PREFIX}/runs", f"{PREFIX}/runs/{{run}}"
Key = Annotated[
    str, Header(alias="Idempotency-Key", min_length=1, max_length=200, description="The same key makes one run.")
]


def _only_iso(value: object) -> object:
    # pydantic would take a bare number as well, as seconds since 1970.
    if not isinstance(value, str) or not re.match(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("should be a moment as in 2026-01-31T12:00:00Z")
    return value


Moment = Annotated[datetime, BeforeValidator(_only_iso)]


@router.post(RUNS, response_model=RunRecord, status_code=201)
def submit(body: Submission, key: Key, mine: Mine, paths: Hidden) -> Response:
    """Makes a run of data that has been sent, as QUEUED."""
    return answer(paths.run(mine.runs.create(submission.submit(mine, body), idempotency_key=key)), status=201)


@router.get(RUNS, response_model=RunPage)
def list_runs(
    mine: Mine, paths: Hidden, status: Annotated[list[Status], Query()] = [],  # noqa: B006 - FastAPI copies it
    owner: Annotated[list[str], Query()] = [],  # noqa: B006
    name: Annotated[str | None, Query(max_length=200, description="A glob, or the beginning of an id.")] = None,
    after: Moment | None = None, before: Moment | None = None,
    experiment_id: Annotated[str | None, Query(max_length=100)] = None,
    cursor: Annotated[str | None, Query(max_length=100)] = None, limit: Limit = 100,
) -> Response:
    """Runs that fit all conditions, newest first."""
    wanted = RunFilter(
        statuses=frozenset(status), owners=frozenset(owner), name=name, after=after, before=before,
        experiment_id=experiment_id, cursor=cursor, limit=min(limit, PAGE_LIMIT),
    )
    page = [paths.run(record) for record in mine.runs.list(wanted)]
    return answer(RunPage(runs=tuple(page), next_cursor=page[-1].id if len(page) == wanted.limit > 0 else None))


@router.get(RUN, response_model=RunRecord)
def get(run: RunRef, mine: Mine, paths: Hidden) -> Response:
    """A run as it is now."""
    return answer(paths.run(mine.runs.get(run)))


@router.delete(RUN, status_code=204)
def delete(run: RunRef, mine: Mine) -> None:
    """Removes an ended run. Its registered model stays."""
    mine.runs.delete(run)


@router.post(f"{RUN}/cancel", response_model=RunRecord)
def cancel(run: RunRef, body: Cancellation, mine: Mine, paths: Hidden) -> Response:
    """Stops a run; if it is training, a checkpoint is saved first."""
    return answer(paths.run(mine.runs.cancel(run, reason=body.reason)))


@router.post(f"{RUN}/resume", response_model=RunRecord, status_code=201)
def resume(run: RunRef, key: Key, mine: Mine, paths: Hidden) -> Response:
    """A child run that goes on from the last checkpoint of a STOPPED or FAILED one."""
    return answer(paths.run(mine.runs.resume(run, idempotency_key=key)), status=201)


@router.get(f"{RUN}/events", response_model=EventPage)
def events(run: RunRef, mine: Mine, paths: Hidden, after: After = 0, limit: Limit = PAGE_LIMIT) -> Response:
    """Events above the sequence number `after`, oldest first."""
    return answer(EventPage(events=tuple(map(paths.event, mine.runs.events(run, after=after, limit=limit)))))


@router.get(
    f"{RUN}/stream", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}}
)
def stream(
    request: Request, run: RunRef, mine: Mine,
    last: Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**53, description="Go on after this event.")] = 0,
) -> Response:
    """Events as they come, as server-sent events: `event` with the sequence number as id, until `end`. A stream that
    ends without `end` was cut: ask again with `Last-Event-ID`."""
    found = mine.runs.get(run).id
    return StreamingResponse(request.app.state.feed.follow(mine, found, last), media_type="text/event-stream")


@router.get(f"{RUN}/metrics", response_model=MetricPage)
def metrics(
    run: RunRef, mine: Mine, key: Annotated[list[str] | None, Query()] = None, after_step: After = -1,
    until_step: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    resolution: Annotated[int | None, Query(ge=1, le=PAGE_LIMIT, description="At most so many, spread evenly.")] = None,
    limit: Limit = PAGE_LIMIT,
) -> Response:
    """Figures of steps above `after_step`, in order; with `resolution`, over the whole range up to `until_step`."""

    def page(after: int, size: int) -> list[MetricRow]:
        rows = mine.runs.metrics(run, keys=key, after_step=after, limit=size)
        return [row for row in rows if until_step is None or row.step <= until_step]

    def all_rows() -> Iterator[MetricRow]:
        after = after_step
        while rows := page(after, PAGE_LIMIT):
            yield from rows
            after = rows[-1].step

    found = thinned(all_rows(), resolution) if resolution else page(after_step, limit)
    return answer(MetricPage(metrics=tuple(found)))


@router.get(f"{RUN}/logs", response_model=LogChunk)
def logs(run: RunRef, mine: Mine, paths: Hidden, offset: After = 0) -> Response:
    """The log from `offset` on, at most a page of it."""
    chunk = mine.runs.logs(run, offset=offset)
    return answer(chunk.model_copy(update={"text": paths.hide(chunk.text)}))


@router.get(f"{RUN}/checkpoints", response_model=CheckpointPage)
def checkpoints(run: RunRef, mine: Mine, paths: Hidden) -> Response:
    """The whole checkpoints, oldest first. Each one's path can be given as a request's `custom_weights_path`."""
    return answer(CheckpointPage(checkpoints=tuple(map(paths.checkpoint, mine.runs.checkpoints(run)))))


@router.get(f"{RUN}/checkpoints/{{step}}/file", response_class=Response, responses=FILE)
def checkpoint_file(
    run: RunRef, step: Annotated[int, Path(ge=0, le=2**53)], mine: Mine, name: Annotated[str, Query(max_length=500)],
    wanted: Annotated[str, Header(alias="Range", max_length=100)] = "",
) -> Response:
    """One file of a checkpoint, or with `Range: bytes=a-b` a part of it."""
    return send_file(mine.runs.read_checkpoint(run, step, name), wanted)
