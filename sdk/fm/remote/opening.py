"""From a server's address to an opened remote backend."""

from __future__ import annotations

import os

from fm.errors import Unauthorised
from fm.remote.address import check_url
from fm.remote.backend import RemoteBackend
from fm.remote.client import Client
from fm.remote.contexts import Contexts
from fm.settings import Settings


def open_remote(url: str, *, token: str | None = None) -> RemoteBackend:
    """The server at `url`.

    Args:
        token: None takes FM_TOKEN, else what `ftctl login` or a server of this user has kept for that address.

    Raises:
        RequestError: no address of a server, one to which no token may be sent, or no token.
        Unauthorised: there is no token for it.
    """
    url = check_url(url)
    found = os.environ.get("FM_TOKEN") or Contexts.read().token_for(url) if token is None else token
    if found is None:
        raise Unauthorised(f"there is no token for {url}", hint=f"ftctl login NAME {url}, or set FM_TOKEN")
    return RemoteBackend(Client(url, found), home=Settings.read().home)
