"""Which backend a call goes to: the argument, else the one chosen by `fm.backend`, else FM_BACKEND, else the server
that `ftctl login` or `ftctl context use` made the current one, else local."""

from __future__ import annotations

import os
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, cast

from fm.backends.base import Backend
from fm.errors import RequestError
from fm.plugins import BACKENDS, load

_chosen: ContextVar[Backend | None] = ContextVar("fm_backend", default=None)
_process_wide: Backend | None = None
"""What a plain call chose. Kept apart, since threads and notebook cells don't inherit a context variable."""
_opened: dict[tuple[str | None, ...], Backend] = {}
"""Backends opened for their name alone. The key holds the settings too, which tests and notebooks change."""
_SETTINGS = ("FM_HOME", "FM_RUNS", "FM_FILES", "FM_STORE", "FM_AGENT", "FM_TOKEN")


class backend:  # noqa: N801 - used as a function: `fm.backend("fake")`
    """Chooses where the following calls go.

    As a plain call it holds for the process, until the next one; as ``with fm.backend("fake") as b:`` for the block
    and what the block calls, in this thread or task only. Runs made earlier stay with the backend that made them.

    Args:
        which: "local", "fake", a server's address, the name that `ftctl login` gave one, the name of an installed
            backend, or an opened backend.
        options: passed on to the backend that is opened, as in ``fm.backend("https://train.example", token=...)``.

    Raises:
        RequestError: there is no backend of that name, or no token may be sent to that address.
        Unauthorised: there is no token for that server.
    """

    def __init__(self, which: str | Backend = "local", **options: Any) -> None:
        global _process_wide
        self._backend = _open(which, options)
        self._before = _process_wide
        self._token: Token[Backend | None] | None = None
        _process_wide = self._backend

    def __enter__(self) -> Backend:
        global _process_wide
        _process_wide = self._before
        self._token = _chosen.set(self._backend)
        return self._backend

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _chosen.reset(self._token)


def current(which: str | Backend | None = None) -> Backend:
    """The backend that a call with ``backend=which`` goes to."""
    if which is not None:
        return _open(which, {})
    return _chosen.get() or _process_wide or _open(os.environ.get("FM_BACKEND") or _current_context() or "local", {})


def _current_context() -> str | None:
    from fm.remote.contexts import Contexts

    return Contexts.read().current


def _open(which: str | Backend, options: dict[str, Any]) -> Backend:
    if not isinstance(which, str):
        if options:
            raise RequestError("options go with a backend's name, not with an opened backend", field="backend")
        return which
    if options:
        return _load(which, options)
    key = (which, *(os.environ.get(setting) for setting in _SETTINGS))
    if key not in _opened:
        _opened[key] = _load(which, {})
    return _opened[key]


def _load(which: str, options: dict[str, Any]) -> Backend:
    if "://" in which:
        return cast(Backend, load("backends", "remote")(which, **options))
    if which not in BACKENDS:
        from fm.remote.contexts import Contexts

        if context := Contexts.read().contexts.get(which):
            return cast(Backend, load("backends", "remote")(context.url, **{"token": context.token, **options}))
    return cast(Backend, load("backends", which)(**options))
