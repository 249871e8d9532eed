"""What every request passes before anything looks at it: its name, its origin, its size."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import fm
from fm import wire
from fm.wire import Problem
from fm_server.answers import problem
from fm_server.counters import Counters

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADERS = {
    wire.SERVER_VERSION: fm.__version__,
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The most bytes that a request's body may have."""

    body: int = 1 << 20
    upload: int = 64 << 20
    """Of one part of a data set."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is let in."""

    hosts: frozenset[str]
    """Names under which the server is reached, in small letters."""
    tls_only: bool
    """Whether others than this machine have to come by TLS, their own or that of a proxy that says so."""
    limits: Limits


class Door:
    """ASGI middleware: gives each request an id, and turns away what is not for this server or is too large."""

    def __init__(self, app: ASGIApp, *, rules: Rules, counters: Counters) -> None:
        self._app = app
        self._rules = rules
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(wire.REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        limit = self._rules.limits.upload if scope["method"] == "PUT" else self._rules.limits.body
        began, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                for name, value in (*_HEADERS.items(), (wire.REQUEST_ID, request_id)):
                    added[name] = value
            await send(message)

        try:
            if refusal := self._refusal(scope, headers, limit):
                refused, why = refusal
                answer = problem(_problem(refused, why, request_id))
                await answer(scope, receive, send_on)
            else:
                await self._app(scope, _bounded(receive, limit), send_on)
        finally:
            self._counters.request(scope["method"], _route(scope), status, time.perf_counter() - began)

    def _refusal(self, scope: Scope, headers: Headers, limit: int) -> tuple[int, str] | None:
        """Status and reason of turning the request away; None to let it in."""
        host = _hostname(f"//{headers.get('host', '')}")
        if host not in self._rules.hosts:
            return 403, f"this server does not answer to the name {host!r}; `ftctl server --name` gives it another"
        if self._rules.tls_only and scope["scheme"] != "https" and (scope["client"] or ("",))[0] not in LOOPBACK:
            return 403, "this came in the clear; come by HTTPS, through a proxy that sets X-Forwarded-Proto to https"
        origin = headers.get("origin")
        if origin is not None and _hostname(origin) not in self._rules.hosts:
            return 403, "requests from other sites are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests from other sites are refused"
        if headers.get("content-encoding", "identity") != "identity":
            return 400, "compressed bodies are refused"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "the length of the body is no number"
        if int(length) > limit:
            return 413, f"the body is longer than {limit:,} bytes"
        return None


def _bounded(receive: Receive, limit: int) -> Receive:
    """`receive`, which ends with 413 once more than `limit` bytes came, whatever length was told."""
    left = limit

    async def receive_some() -> MutableMapping[str, Any]:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"the body is longer than {limit:,} bytes")
        return message

    return receive_some


def _problem(status: int, why: str, request_id: str) -> Problem:
    code = {403: "forbidden"}.get(status, "request_error")
    return Problem(title="Refused", status=status, code=code, detail=why, request_id=request_id)


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _route(scope: Scope) -> str:
    """The route's template, never the path: an id is no label, and a stranger's text none either."""
    return getattr(scope.get("route"), "path", "none")
