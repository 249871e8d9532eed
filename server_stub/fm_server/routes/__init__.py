"""The routes, a module for each noun. Each is one call of the caller's view of the backend."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from fm.backends.base import PAGE_LIMIT
from fm.backends.stored import StoreBackend
from fm.wire import Problem
from fm_server.guard import GuardedRoute
from fm_server.paths import Paths


def make_router(tag: str) -> APIRouter:
    """A router whose routes are guarded, and whose errors OpenAPI knows."""
    errors: dict[int | str, dict[str, object]] = {"default": {"model": Problem, "description": "what was wrong"}}
    return APIRouter(route_class=GuardedRoute, tags=[tag], responses=errors)


def _mine(request: Request) -> StoreBackend:
    backend: StoreBackend = request.state.backend
    return backend


def _paths(request: Request) -> Paths:
    paths: Paths = request.app.state.paths
    return paths


Mine = Annotated[StoreBackend, Depends(_mine)]
"""The backend as the caller may see it."""
Hidden = Annotated[Paths, Depends(_paths)]
RunRef = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$", description="An id, the beginning of one, or a name.")
]
ModelName = Annotated[
    str, Query(max_length=500, description="catalog.schema.model, with @alias or /version.", examples=["main.qa.bot/3"])
]
FILE: dict[int | str, dict[str, Any]] = {
    status: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    for status in (200, 206)
}
"""What OpenAPI says of a route that sends a file."""
Limit = Annotated[int, Query(ge=0, le=10**9, description=f"At most so many; more than {PAGE_LIMIT} are never sent.")]
After = Annotated[int, Query(ge=-1, le=2**53)]
