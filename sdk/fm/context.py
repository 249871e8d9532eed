"""Which backend a call goes to: the argument, else the one chosen by `fm.backend`, else FM_BACKEND, else local."""

from __future__ import annotations

import os
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, cast

from fm.backends.base import Backend
from fm.errors import RequestError, Unsupported
from fm.plugins import load

_chosen: ContextVar[Backend | None] = ContextVar("fm_backend", default=None)
_process_wide: Backend | None = None
"""What a plain call chose. Kept apart, since threads and notebook cells don't inherit a context variable."""
_opened: dict[tuple[str | None, ...], Backend] = {}
"""Backends opened for their name alone. The key holds the settings too, which tests and notebooks change."""
_SETTINGS = ("FM_HOME", "FM_RUNS", "FM_STORE", "FM_AGENT")


class backend:  # noqa: N801 - used as a function: `fm.backend("fake")`
    """Chooses where the following calls go.

    As a plain call it holds for the process, until the next one; as ``with fm.backend("fake") as b:`` for the block
    and what the block calls, in this thread or task only. Runs made earlier stay with the backend that made them.

    Args:
        which: "local", "fake", the name of an installed backend, or an opened backend.
        options: passed on to the backend that is opened, as in ``fm.backend("fake", ...)``.

    Raises:
        RequestError: there is no backend of that name.
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
    return _chosen.get() or _process_wide or _open(os.environ.get("FM_BACKEND") or "local", {})


def _open(which: str | Backend, options: dict[str, Any]) -> Backend:
    if not isinstance(which, str):
        if options:
            raise RequestError("options go with a backend's name, not with an opened backend", field="backend")
        return which
    if "://" in which:
        raise Unsupported(
            f"backend {which!r}: this version of ftctl can't reach a server", field="backend", hint='use "local"'
        )
    if options:
        return cast(Backend, load("backends", which)(**options))
    key = (which, *(os.environ.get(setting) for setting in _SETTINGS))
    if key not in _opened:
        _opened[key] = load("backends", which)()
    return _opened[key]
