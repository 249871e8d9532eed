"""How every answer looks: values as JSON, errors as problems, and no path of this machine in either."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import fm
from fm import wire
from fm.errors import FMError, RequestError
from fm.wire import Problem
from fm_server.guard import SCOPES

logger = logging.getLogger("fm.server")


def answer(value: BaseModel, *, status: int = 200) -> Response:
    """`value` as JSON. Made here, since FastAPI would validate it once more before it writes it."""
    return Response(value.model_dump_json(), status, media_type="application/json")


def problem(found: Problem, *, allow: Sequence[str] = ()) -> Response:
    """An error's answer; `allow` are the methods that the path knows, where another one was used."""
    headers = {"WWW-Authenticate": "Bearer"} if found.status == 401 else {}
    if allow:
        headers["Allow"] = ", ".join(allow)
    return Response(found.model_dump_json(), found.status, headers, wire.PROBLEM)


def explain_errors(app: FastAPI) -> None:
    """Turns whatever is raised into a problem."""

    @app.exception_handler(FMError)
    async def known(request: Request, error: FMError) -> Response:
        found = wire.problem_of(error, request.state.request_id)
        if found.status >= 500:
            logger.error("%s %s (%s): %s", request.method, request.url.path, request.state.request_id, error.message)
        return problem(Problem.model_validate_json(request.app.state.paths.hide(found.model_dump_json())))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return problem(wire.problem_of(_request_error(error), request.state.request_id))

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        codes = {404: wire.UNKNOWN_ROUTE, 405: wire.UNKNOWN_ROUTE}
        here = getattr(request.scope.get("route"), "path", None)
        allow = sorted({method for method, path in SCOPES if path == here}) if error.status_code == 405 else ()
        return problem(
            Problem(
                title=str(error.detail), status=error.status_code, code=codes.get(error.status_code, "request_error"),
                detail=f"{request.method} {request.url.path}: {error.detail}".lower(),
                hint=f"this is ftctl {fm.__version__}, which speaks {wire.PREFIX}",
                request_id=request.state.request_id,
            ),
            allow=allow,
        )

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        logger.error("%s %s (%s)", request.method, request.url.path, request.state.request_id, exc_info=error)
        return problem(
            Problem(
                title="Internal error", status=500, code=wire.code_of(FMError),
                detail=f"the server failed at this request: {type(error).__name__}",
                hint="its log says more, under the request's id", request_id=request.state.request_id,
            )
        )


def _request_error(error: RequestValidationError) -> RequestError:
    first: dict[str, Any] = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    if first["type"] == "extra_forbidden":
        return RequestError(
            f"{field} is not known to ftctl {fm.__version__}, which this server is", field=field,
            hint="correct the name; if the client is newer, upgrade the server, or leave the field out",
        )
    given = json.dumps(first.get("input"), default=str)[:200]
    return RequestError(f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}; got {given}", field=field)
