"""A server for a test, in one line: ``with fm.testing.serve() as server: fm.create(..., backend=server.remote)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fm.backends.fake import open_fake
from fm.backends.stored import StoreBackend
from fm.errors import Conflict
from fm.plugins import load
from fm.remote.backend import RemoteBackend
from fm.remote.opening import open_remote
from fm.types import ALL_SCOPES, Principal, Scope


@dataclass(frozen=True, slots=True)
class Served:
    """A server that listens on loopback, and what lies on either side of it."""

    url: str
    token: str
    """Of the user "tester" of the team "local", with all scopes."""
    remote: RemoteBackend
    """The client's side, with that token."""
    kept: StoreBackend
    """What the server serves; of a fake, its `launcher.script` may be replaced."""

    def token_for(self, team: str, *scopes: Scope) -> str:
        """Another token: of the user "tester" of `team`, which is made if there is none; no scopes mean all."""
        return _make_token(self.kept, team, scopes)


@contextmanager
def serve(backend: StoreBackend | None = None) -> Iterator[Served]:
    """Serves `backend`, or a fresh fake, on a free port of loopback, as long as the block lasts.

    Raises:
        MissingExtra: FastAPI or uvicorn is not installed.
    """
    kept = backend or open_fake()
    token = _make_token(kept, "local", ())
    with load("parts", "serve_in_background")(kept) as url:
        remote = open_remote(url, token=token)
        try:
            yield Served(url, token, remote, kept)
        finally:
            remote.close()


def _make_token(kept: StoreBackend, team: str, scopes: tuple[Scope, ...]) -> str:
    administration = kept.store.administration(Principal(user="tester"))
    with suppress(Conflict):  # it is there
        administration.add_team(team)
    with suppress(Conflict):
        administration.add_user(team, "tester")
    return administration.make_token(team, "tester", scopes=scopes or ALL_SCOPES).text
