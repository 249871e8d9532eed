"""The server itself: whether it lives, what it can do, what it counts."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.responses import PlainTextResponse

import fm
from fm.wire import PREFIX, Info
from fm_server.answers import answer
from fm_server.guard import SCOPES
from fm_server.routes import Mine, make_router

router = make_router("server")


@router.get("/healthz")
def health(request: Request) -> dict[str, str]:
    """Whether the server can reach its store. The one question without a token."""
    request.app.state.backend.store.has_unfinished()
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
def prometheus(request: Request) -> str:
    """Counts of runs, agents, followers and requests, for Prometheus."""
    text: str = request.app.state.counters.text(request.app.state.backend)
    return text


@router.get(PREFIX, response_model=Info)
def info(mine: Mine) -> Response:
    """Version and routes of this server, and whose token this is."""
    who = mine.principal
    return answer(
        Info(
            version=fm.__version__, routes=tuple(f"{method} {path}" for method, path in SCOPES), user=who.user,
            team=who.team, scopes=tuple(sorted(who.scopes)), poll_seconds=mine.poll_seconds,
        )
    )


@router.get(f"{PREFIX}/openapi.json", include_in_schema=False)
def schema(request: Request) -> dict[str, object]:
    """This interface as OpenAPI."""
    found: dict[str, object] = request.app.openapi()
    return found
