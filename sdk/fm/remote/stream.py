"""Events as a server sends them, over cuts and restarts: each once, in order, without a gap."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import httpx

from fm.errors import Unavailable
from fm.follow import OUTAGE_SECONDS
from fm.remote.client import Call, Client
from fm.types import Event
from fm.wire import Problem, error_of

_PAUSE_SECONDS = 1.0


def follow(client: Client, path: str, after: int) -> Iterator[Event]:
    """The events above `after`, and those to come, until the server says that there are no more.

    Raises:
        Unavailable: for five minutes there was no sign of life of the server.
        Unsupported: it sends what this version can't understand.
    """
    seen = time.monotonic()
    while True:
        try:
            headers = {"Last-Event-ID": str(max(0, after)), "Accept": "text/event-stream"}
            with client.stream(Call("GET", path, headers=headers)) as response:
                for kind, data in _messages(response):
                    seen = time.monotonic()
                    if kind == "end":
                        return
                    if kind == "error":
                        raise error_of(client.understood(Problem, data, response))
                    if kind != "event":
                        continue
                    event = client.understood(Event, data, response)
                    if event.seq > after + 1:
                        break  # something was lost on the way: ask for it
                    if event.seq == after + 1:
                        after = event.seq
                        yield event
                        seen = time.monotonic()  # however long that took its reader
        except Unavailable as error:
            if not error.retryable or time.monotonic() - seen > OUTAGE_SECONDS:
                raise
        time.sleep(_PAUSE_SECONDS * random.random())


def _messages(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """Kind and data of each server-sent event, and an empty kind for each keep-alive; what its end cut off is none."""
    kind = data = ""
    for line in response.iter_lines():
        name, _, value = line.partition(":")
        if not line:
            if data:
                yield kind, data
            kind = data = ""
        elif not name:
            yield "", ""
        elif name == "event":
            kind = value.strip()
        elif name == "data":
            data += value.strip()
