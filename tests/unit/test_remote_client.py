"""The HTTP client: what it repeats and what not, by when it gives up, and where it sends no token."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import respx
from pydantic import BaseModel

import fm
from fm.deadline import within
from fm.errors import Conflict, FMError, RequestError, Unauthorised, Unavailable, Unsupported
from fm.remote.client import Call, Client
from fm.remote.opening import open_remote

URL = "https://train.example"
CANARY = "ftc_canary"
GET = Call("GET", "/v1/runs")
ORDER = Call("POST", "/v1/runs", key="k")


class Anything(BaseModel):
    ok: bool = True


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(pauses: list[float]) -> Client:
    return Client(URL, CANARY, sleep=pauses.append, jitter=lambda: 0.5)


@pytest.fixture
def server() -> Iterator[respx.MockRouter]:
    with respx.mock(base_url=URL) as router:
        yield router


def problem(status: int, code: str, **fields: object) -> httpx.Response:
    body = {"title": code, "status": status, "code": code, "detail": "d", **fields}
    return httpx.Response(status, content=json.dumps(body), headers={"Content-Type": "application/problem+json"})


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_refusal_is_asked_again_three_times_in_all(
    client: Client, server: respx.MockRouter, status: int, pauses: list[float]
) -> None:
    refused, good = httpx.Response(status), httpx.Response(200, json={})
    route = server.get("/v1/runs").mock(side_effect=[refused, refused, good])
    assert client.ask(Anything, GET).ok
    assert route.call_count == 3
    assert len(pauses) == 2 and all(0.5 <= pause <= 8 for pause in pauses)
    route.mock(return_value=httpx.Response(status))
    with pytest.raises(Unavailable) as error:
        client.send(GET)
    assert (error.value.attempts, error.value.retryable) == (3, True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 501, 507])
def test_a_lasting_refusal_is_asked_once(client: Client, server: respx.MockRouter, status: int) -> None:
    route = server.get("/v1/runs").mock(return_value=httpx.Response(status))
    with pytest.raises(FMError) as error:
        client.send(GET)
    assert (route.call_count, error.value.attempts, error.value.retryable) == (1, 1, False)


def test_a_conflict_is_asked_again_only_while_it_is_in_progress(client: Client, server: respx.MockRouter) -> None:
    going = problem(409, "in_progress", retryable=True)
    route = server.post("/v1/runs").mock(side_effect=[going, httpx.Response(200, json={})])
    assert client.ask(Anything, ORDER).ok and route.call_count == 2
    route.mock(side_effect=[problem(409, "conflict")])
    with pytest.raises(Conflict):
        client.send(ORDER)


def test_an_order_is_repeated_only_with_a_key_and_always_with_the_same(
    client: Client, server: respx.MockRouter
) -> None:
    route = server.post("/v1/runs").mock(side_effect=[httpx.ReadError("cut"), httpx.Response(200, json={})])
    assert client.ask(Anything, ORDER).ok
    assert [call.request.headers["Idempotency-Key"] for call in route.calls] == ["k", "k"]
    assert len({call.request.headers["X-Request-ID"] for call in route.calls}) == 1
    route.mock(side_effect=httpx.ReadError("cut"))
    before = route.call_count
    with pytest.raises(Unavailable) as error:
        client.send(Call("POST", "/v1/runs"))
    assert route.call_count == before + 1 and error.value.attempts == 1


@pytest.mark.parametrize(("header", "paused"), [("7", [7.0]), ("0", [0.0]), ("120", [120.0])])
def test_retry_after_is_obeyed(
    client: Client, server: respx.MockRouter, pauses: list[float], header: str, paused: list[float]
) -> None:
    busy = httpx.Response(429, headers={"Retry-After": header})
    server.get("/v1/runs").mock(side_effect=[busy, httpx.Response(200, json={})])
    assert client.ask(Anything, GET).ok and pauses == paused


def test_a_retry_after_of_more_than_two_minutes_or_beyond_the_deadline_is_not_waited_for(
    client: Client, server: respx.MockRouter, pauses: list[float]
) -> None:
    route = server.get("/v1/runs").mock(return_value=httpx.Response(503, headers={"Retry-After": "121"}))
    with pytest.raises(Unavailable):
        client.send(GET)
    route.mock(return_value=httpx.Response(503, headers={"Retry-After": "30"}))
    with within(10), pytest.raises(Unavailable):
        client.send(GET)
    assert route.call_count == 2 and pauses == []


def test_a_redirect_is_not_followed_and_the_token_stays(client: Client, server: respx.MockRouter) -> None:
    server.get("/v1/runs").mock(return_value=httpx.Response(307, headers={"Location": "https://evil.example/v1/runs"}))
    with pytest.raises(Unavailable, match=r"evil\.example.*not followed") as error:
        client.send(GET)
    assert error.value.attempts == 1


def test_who_asks_is_said(client: Client, server: respx.MockRouter) -> None:
    route = server.get("/v1/runs").mock(return_value=httpx.Response(200, json={}))
    client.send(GET)
    headers = route.calls[0].request.headers
    assert headers["User-Agent"] == f"ftctl/{fm.__version__}" and headers["Authorization"] == f"Bearer {CANARY}"


def test_what_an_older_server_does_not_know_is_unsupported(client: Client, server: respx.MockRouter) -> None:
    answer = problem(404, "unknown_route")
    answer.headers["X-FM-Version"] = "0.0.9"
    server.get("/v1/runs").mock(return_value=answer)
    with pytest.raises(Unsupported, match=r"ftctl 0\.0\.9.*knows nothing of GET /v1/runs"):
        client.send(GET)


@pytest.mark.parametrize("body", [b"<html>", b"{", b"[]", b'{"ok": "perhaps"}'])
def test_an_answer_that_is_none_is_unsupported(client: Client, server: respx.MockRouter, body: bytes) -> None:
    server.get("/v1/runs").mock(return_value=httpx.Response(200, content=body))
    with pytest.raises(Unsupported, match="can't be understood"):
        client.ask(Anything, GET)


def test_a_proxys_error_page_is_unavailable(client: Client, server: respx.MockRouter) -> None:
    server.get("/v1/runs").mock(return_value=httpx.Response(502, content=b"<html>"))
    with pytest.raises(Unavailable, match="502 Bad Gateway"):
        client.send(GET)


@pytest.mark.parametrize(
    "url", ["http://train.example", "http://192.168.1.5:8080", "http://127.0.0.1.evil.example", "ftp://x", "https://",
            "https://me:secret@train.example", "https://train.example/?token=x"],
)
def test_no_token_is_sent_in_the_clear_or_to_what_is_no_server(url: str) -> None:
    with pytest.raises(RequestError) as error:
        open_remote(url, token=CANARY)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/", "http://localhost:1", "http://[::1]:8080", "https://a.example/ft/"])
def test_loopback_and_https_are_servers(url: str) -> None:
    assert open_remote(url, token=CANARY).name == url.rstrip("/")


def test_a_server_without_a_token_says_how_to_log_in() -> None:
    with pytest.raises(Unauthorised, match="ftctl login"):
        fm.list(backend="https://train.example")


def test_the_token_is_in_no_repr_and_no_error(client: Client, server: respx.MockRouter) -> None:
    server.get("/v1/runs").mock(side_effect=httpx.ConnectError("no"))
    with pytest.raises(Unavailable) as error:
        client.send(GET)
    shown = repr((client, vars(client), client._http.headers, error.value, vars(error.value), error.value.__cause__))
    assert CANARY not in shown


@contextmanager
def odd_server(*pieces: bytes, pause: float = 0.0, repeat: bytes = b"") -> Iterator[str]:
    """A server that answers every connection with `pieces`, then `repeat` for ever, each after a pause."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
                while repeat:
                    connection.sendall(repeat)
                    time.sleep(pause)
                time.sleep(30)
            except OSError:
                return

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "repeat"), [((), b""), ((b"HTTP/1.1 200 OK\r\n",), b"x"), ((OK,), b"x"), ((OK,), b"")],
    ids=["black hole", "trickled head", "trickled body", "no body"],
)
def test_a_server_that_holds_its_client_is_given_up_at_the_deadline(pieces: tuple[bytes, ...], repeat: bytes) -> None:
    with odd_server(*pieces, pause=0.05, repeat=repeat) as url:
        client = Client(url, CANARY)
        began = time.monotonic()
        with within(1.0), pytest.raises(Unavailable, match="no answer in time"):
            client.send(GET)
        assert time.monotonic() - began < 3


def test_a_refused_connection_is_a_typed_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    client = Client(url, CANARY, sleep=lambda _: None)
    with pytest.raises(Unavailable, match="can't be reached") as error:
        client.send(GET)
    assert error.value.attempts == 3
