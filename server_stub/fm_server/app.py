"""The application: a backend, and the routes to it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import APIRouter, FastAPI

import fm
from fm import wire
from fm.backends.stored import StoreBackend
from fm_server.answers import explain_errors
from fm_server.counters import Counters
from fm_server.door import LOOPBACK, Door, Limits, Rules
from fm_server.examples import EXAMPLES, add_examples
from fm_server.feed import Feed
from fm_server.guard import PUBLIC, SCOPES, GuardedRoute
from fm_server.paths import Paths
from fm_server.routes import datasets, models, runs, server, training

_ABOUT = "Fine-tuning runs, their events and models. Send `Authorization: Bearer <token>` with every request."


class Application(FastAPI):
    """A FastAPI application whose OpenAPI says what the guard and the errors' answers do, with examples."""

    def openapi(self) -> dict[str, Any]:
        """This interface as OpenAPI; FastAPI itself can be told neither of the errors' media type nor of `SCOPES`."""
        found = super().openapi()
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            for method, operation in operations.items():
                error = operation["responses"]["default"]
                error["content"] = {wire.PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                public = SCOPES[(method.upper(), path)] is PUBLIC
                operation["security"] = [] if public else [{"token": []}]
                if example := EXAMPLES.get((method.upper(), path)):
                    add_examples(operation, example)
        return found


def make_app(
    backend: StoreBackend, *, hosts: Collection[str] = LOOPBACK, tls_only: bool = False, limits: Limits | None = None
) -> FastAPI:
    """An ASGI application that serves `backend` to whoever has a token of its store.

    Args:
        hosts: the names under which it is reached; requests to any other are refused.
        tls_only: refuse what came from another machine in the clear, past the proxy that ends TLS.
        limits: the most bytes of a request's body.
    """
    app = Application(
        title="ftctl", version=fm.__version__, description=_ABOUT, openapi_url=None, docs_url=None, redoc_url=None
    )
    app.state.backend = backend
    app.state.paths = Paths(backend.storage)
    app.state.counters = Counters()
    app.state.feed = Feed(backend, app.state.paths, app.state.counters)
    app.router.route_class = GuardedRoute
    app.router.redirect_slashes = False
    routers: tuple[APIRouter, ...] = (server.router, training.router, runs.router, models.router, datasets.router)
    for router in routers:
        # Not included, which newer versions of FastAPI do by a wrapper: here every route is one of the application's.
        app.router.routes.extend(router.routes)
    explain_errors(app)
    rules = Rules(hosts=frozenset(host.lower() for host in hosts), tls_only=tls_only, limits=limits or Limits())
    app.add_middleware(Door, rules=rules, counters=app.state.counters)
    return app
