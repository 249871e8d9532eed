"""What can be a server's address, and a token that is sent there."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import httpx

from fm.errors import RequestError


def check_url(url: str) -> str:
    """`url` without a slash at its end, if a server can have it and a token may be sent there.

    Raises:
        RequestError: it is no such address, holds credentials, or is plain HTTP to another machine.
    """
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname and httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        named = False
    if not named or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise RequestError(f"{url!r} is no server's address", field="backend", hint="write https://train.example")
    if parts.username or parts.password:
        hint = "pass token=…, or use ftctl login"
        raise RequestError("a server's address holds no credentials", field="backend", hint=hint)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise RequestError(
            f"{url} is plain HTTP: everybody on the way could read the token", field="backend", hint="write https://"
        )
    return url.rstrip("/")


def check_token(token: str) -> str:
    """`token` without the white space that comes with it out of a file or a shell.

    Raises:
        RequestError: nothing is left, or it holds what no header can. The error does not show it.
    """
    token = token.strip()
    if not token:
        raise RequestError("the token is empty", field="token", hint="`ftctl admin tokens make` prints one")
    if not re.fullmatch("[!-~]+", token):
        hint = "give all of it and nothing else, as `ftctl admin tokens make` printed it"
        raise RequestError("the token holds a character that no token has", field="token", hint=hint)
    return token


def is_loopback(host: str) -> bool:
    """Whether the name or address `host` leads to this machine only."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
