"""The HTTP client: what it repeats and what not, by when it gives up, and where it sends no token."""

from __future__ import annotations

import json
import socket
import time
import traceback
from collections.abc import Iterator
from email.utils import formatdate

import httpx
import pytest
import respx
from pydantic import BaseModel

import fm
from fm.deadline import within
from fm.errors import Conflict, FMError, RequestError, Unauthorised, Unavailable, Unsupported
from fm.remote.client import Call, Client
from fm.remote.opening import open_remote
from support.odd_server import odd_server

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


def test_retry_after_may_be_a_moment(client: Client, server: respx.MockRouter, pauses: list[float]) -> None:
    def busy(until: str) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": until})

    soon, past = (formatdate(time.time() + seconds, usegmt=True) for seconds in (40, -40))
    route = server.get("/v1/runs").mock(side_effect=[busy(soon), busy(past), httpx.Response(200)])
    client.send(GET)
    assert 30 < pauses[0] <= 40 and pauses[1] == 0
    route.mock(side_effect=[busy("tomorrow"), httpx.Response(200)])
    client.send(GET)
    assert 0.5 <= pauses[2] <= 8, "what is no moment is passed over"


def test_each_part_of_an_answer_has_its_own_timeout(client: Client, server: respx.MockRouter) -> None:
    route = server.get("/v1/runs").mock(return_value=httpx.Response(200))
    client.send(GET)
    with client.stream(GET):
        pass
    for call in route.calls:
        assert call.request.extensions["timeout"] == {"connect": 5, "read": 30, "write": 60, "pool": 5}


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
            "https://me:secret@train.example", "https://train.example/?token=x", "https://[::1",
            "https://a:port", "https://a\0b"],
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


@pytest.mark.parametrize("token", [f"{CANARY}\nX-Evil: 1", f"{CANARY} more", f"{CANARY}\x01", f"{CANARY}ä"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FM_TOKEN", token)
    for attempt in (lambda: Client(URL, token), lambda: open_remote(URL, token=token), lambda: open_remote(URL)):
        with pytest.raises(RequestError, match="character") as error:
            attempt()
        shown = "".join(traceback.format_exception(error.value)) + repr(vars(error.value))
        assert CANARY not in shown


def test_white_space_around_a_token_is_none_of_it(server: respx.MockRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    route = server.get("/v1/runs").mock(return_value=httpx.Response(200))
    monkeypatch.setenv("FM_TOKEN", f"{CANARY}\r\n")
    for client in (Client(URL, f" {CANARY}\n"), open_remote(URL).client):
        client.send(GET)
    assert {call.request.headers["Authorization"] for call in route.calls} == {f"Bearer {CANARY}"}


@pytest.mark.parametrize("token", ["", " \n"])
def test_an_empty_token_is_refused_whatever_else_is_kept(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FM_TOKEN", CANARY)
    with pytest.raises(RequestError, match="empty"):
        open_remote(URL, token=token)


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
