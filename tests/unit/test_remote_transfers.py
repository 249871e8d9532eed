"""Files and events that come over a wire from servers that are slow, broken or strange."""

from __future__ import annotations

import gzip
import time

import pytest
from pydantic import BaseModel

from fm.errors import FMError, Unavailable, Unsupported
from fm.remote import downloads
from fm.remote.client import Call, Client
from fm.remote.stream import follow
from support.odd_server import odd_server

SOURCE = downloads.Source("/v1/file", {}, "a model")


def head(*fields: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode()


def client(url: str) -> Client:
    return Client(url, "ftc_x", sleep=lambda _: None)


class TestDownloads:
    """A file may take as long as it takes, if it comes."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(downloads, "CALL_SECONDS", 0.5)
        monkeypatch.setattr(downloads, "SLOWEST", 1000)

    def test_one_that_trickles_is_given_up(self) -> None:
        began = time.monotonic()
        trickle = odd_server(head("Content-Length: 1000000"), pause=0.02, repeat=b"x")
        with trickle as url, pytest.raises(Unavailable, match="no answer in time"):
            downloads.read(client(url), SOURCE, "weights", 0)
        assert time.monotonic() - began < 3

    def test_one_that_comes_fast_and_then_trickles_is_given_up_as_soon(self) -> None:
        began = time.monotonic()
        trickle = odd_server(head("Content-Length: 1000000"), b"x" * 500_000, pause=0.02, repeat=b"x")
        with trickle as url, pytest.raises(Unavailable, match="no answer in time"):
            downloads.read(client(url), SOURCE, "weights", 0)
        assert time.monotonic() - began < 3

    def test_one_that_comes_fast_enough_has_all_the_time_that_it_needs(self) -> None:
        began = time.monotonic()
        slow = odd_server(head("Content-Length: 4000"), *[b"x" * 100] * 40, pause=0.03)
        with slow as url, downloads.read(client(url), SOURCE, "weights", 0) as file:
            assert len(file.read()) == 4000
        assert time.monotonic() - began > 1


class TestAnswersThatAreNone:
    """Whatever a server sends, the error is one of ours and names the server."""

    class Anything(BaseModel):
        pass

    @pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "503 Busy"])
    def test_a_body_that_is_not_compressed_as_it_says(self, status: str) -> None:
        broken = f"HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\nno gzip".encode()
        with odd_server(broken) as url, pytest.raises(Unavailable, match="arrived damaged") as error:
            client(url).ask(self.Anything, Call("GET", "/v1"))
        assert url in str(error.value) and error.value.hint

    def test_events_that_are_not_compressed_as_they_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fm.remote.stream.OUTAGE_SECONDS", -1)
        whole = gzip.compress(b"event: end\ndata: {}\n\n")
        broken = head("Content-Encoding: gzip", f"Content-Length: {len(whole)}") + whole[:12] + b"x" * (len(whole) - 12)
        with odd_server(broken) as url, pytest.raises(Unavailable, match="arrived damaged"):
            list(follow(client(url), "/v1/stream", 0))

    @pytest.mark.parametrize("kind", ["event", "error"])
    @pytest.mark.parametrize("data", ["{", "[]", '{"seq": "one"}'])
    def test_an_event_that_is_none(self, kind: str, data: str) -> None:
        message = f"event: {kind}\ndata: {data}\n\n".encode()
        odd = odd_server(head(f"Content-Length: {len(message)}") + message)
        with odd as url, pytest.raises(Unsupported, match="can't be understood") as error:
            list(follow(client(url), "/v1/stream", 0))
        assert url in str(error.value) and isinstance(error.value, FMError) and error.value.hint
