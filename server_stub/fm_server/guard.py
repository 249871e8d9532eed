"""Who may call what: the one table of routes and scopes, and the route class that holds every route to it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from fm.errors import RequestError, Unauthorised
from fm.store.access import Access
from fm.types import Principal, Scope

PUBLIC = None
SCOPES: Mapping[tuple[str, str], Scope | None] = {
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/metrics"): "admin",
    ("GET", "/v1"): "read",
    ("GET", "/v1/openapi.json"): "read",
    ("POST", "/v1/validate"): "submit",
    ("POST", "/v1/plan"): "submit",
    ("GET", "/v1/runs"): "read",
    ("POST", "/v1/runs"): "submit",
    ("GET", "/v1/runs/{run}"): "read",
    ("DELETE", "/v1/runs/{run}"): "submit",
    ("POST", "/v1/runs/{run}/cancel"): "submit",
    ("POST", "/v1/runs/{run}/resume"): "submit",
    ("GET", "/v1/runs/{run}/events"): "read",
    ("GET", "/v1/runs/{run}/stream"): "read",
    ("GET", "/v1/runs/{run}/metrics"): "read",
    ("GET", "/v1/runs/{run}/logs"): "read",
    ("GET", "/v1/runs/{run}/checkpoints"): "read",
    ("GET", "/v1/runs/{run}/checkpoints/{step}/file"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/version"): "read",
    ("DELETE", "/v1/models/version"): "submit",
    ("GET", "/v1/models/file"): "read",
    ("POST", "/v1/models/alias"): "submit",
    ("GET", "/v1/datasets"): "read",
    ("GET", "/v1/datasets/{digest}"): "read",
    ("DELETE", "/v1/datasets/{digest}"): "submit",
    ("POST", "/v1/datasets/{digest}"): "submit",
    ("PUT", "/v1/datasets/{digest}/parts/{offset}"): "submit",
    ("POST", "/v1/datasets/{digest}/finish"): "submit",
    ("GET", "/v1/datasets/{digest}/files"): "read",
    ("GET", "/v1/datasets/{digest}/file"): "read",
}
"""The scope that each route needs. A route that is not in the table can't be made."""


class GuardedRoute(APIRoute):
    """A route that nobody reaches without the scope that `SCOPES` says; checked before the body is read.

    The handlers find their caller's view of the backend in ``request.state.backend``.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        for method in self.methods or ():
            if (method, self.path) not in SCOPES:
                raise LookupError(f"{method} {self.path} is not in the table of scopes")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}

        async def guarded(request: Request) -> Response:
            if (scope := SCOPES[(request.method, self.path)]) is not PUBLIC:
                principal = await run_in_threadpool(admit, request, scope)
                request.state.backend = request.app.state.backend.scoped(principal)
            for name in request.query_params:
                if name not in known:
                    raise RequestError(f"there is no parameter {name}", field=name, hint=f"known: {sorted(known)}")
            return await handle(request)

        return guarded


def admit(request: Request, scope: Scope) -> Principal:
    """The caller, if their token has `scope`.

    Raises:
        Unauthorised: there is no token, or none that holds.
        Forbidden: it holds, but lacks the scope.
    """
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthorised("this needs a token", hint="send it as `Authorization: Bearer …`; `ftctl login` keeps one")
    access: Access = request.app.state.backend.store.access
    principal = access.authenticate(token.strip(), address=request.client.host if request.client else "")
    access.require(principal, scope, f"{request.method} {request.url.path}")
    return principal
