"""Asking a server: what is retried, how long is waited, and what an answer means.

Retried are lost connections and the statuses of `_AGAIN`; an order that must not be done twice only where it bears an
idempotency key. Three attempts, pauses of 0.5 to 8 s with full jitter or what `Retry-After` says up to 120 s, and never
beyond the deadline. Redirects are not followed: a token goes to the address that it was given for.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

import fm
from fm import wire
from fm.deadline import until, within
from fm.errors import FMError, Unavailable, Unsupported
from fm.remote.address import check_token, check_url, is_loopback
from fm.remote.network import bound

M = TypeVar("M", bound=BaseModel)
_TIMEOUTS = httpx.Timeout(connect=5.0, read=30.0, write=60.0, pool=5.0)
_AGAIN = {408, 429, 500, 502, 503, 504}
_ATTEMPTS = 3
_SHORTEST, _LONGEST = 0.5, 8.0
_OBEYED_SECONDS = 120.0
CALL_SECONDS = 300.0
"""What a call may take with all its attempts, where its caller says nothing."""
SLOWEST = 64 << 10
"""Bytes per second below which a transfer counts as hanging."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a server. A `key` makes an order safe to repeat; asking and putting are safe anyway."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    body: BaseModel | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[], Iterable[bytes]] | None = None
    """Makes the body anew for each attempt."""
    seconds: float = CALL_SECONDS

    @property
    def repeatable(self) -> bool:
        return self.method != "POST" or self.key is not None


class _Failed(Exception):
    """An attempt that came to nothing; `after` so many seconds the server wants to be asked again."""

    def __init__(self, error: FMError, after: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.after = after


class _Again(_Failed):
    """Another attempt makes sense."""


class Client:
    """A server's address and a token for it. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is asked yet.

        Raises:
            RequestError: no address of a server, no token, or it would travel in the clear.
        """
        self.url = check_url(url)
        self._sleep = sleep
        self._jitter = jitter
        self._http = httpx.Client(
            base_url=self.url, timeout=_TIMEOUTS, follow_redirects=False, auth=_Bearer(check_token(token)),
            headers={"User-Agent": f"ftctl/{fm.__version__}"},
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE counts wherever the server is,
            trust_env=not is_loopback(httpx.URL(self.url).host),  # but a proxy is for the way out of this machine
        )
        bound(self._http)

    def close(self) -> None:
        self._http.close()

    def ask(self, answer: type[M], call: Call) -> M:
        """The server's answer, as an `answer`.

        Raises:
            FMError: what the server raised, of the same class; `Unavailable` if it can't be reached in time.
        """
        response = self.send(call)
        return self.understood(answer, response.content, response)

    def understood(self, answer: type[M], text: str | bytes, response: httpx.Response) -> M:
        """`text`, which came with `response`, as an `answer`.

        Raises:
            Unsupported: it is none.
        """
        try:
            return answer.model_validate_json(text)
        except ValidationError as error:
            raise Unsupported(
                f"the answer of {self._who(response)} can't be understood: {error.errors()[0]['msg']}",
                hint=f"this is ftctl {fm.__version__}; use the server's version",
            ) from error

    def send(self, call: Call) -> httpx.Response:
        """The whole answer, after as many attempts as it took."""
        with within(call.seconds):
            return self._repeat(call, lambda headers: self._once(call, headers))

    @contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """An answer whose body is still to come; how long that may take is its reader's to say."""
        with within(call.seconds):
            response = self._repeat(call, lambda headers: self._open(call, headers))
        try:
            yield response
        except httpx.RequestError as error:
            raise self._lost(error) from error
        finally:
            response.close()

    def _repeat(self, call: Call, attempt: Callable[[dict[str, str]], httpx.Response]) -> httpx.Response:
        headers = {**call.headers, wire.REQUEST_ID: secrets.token_hex(8)}
        if call.key is not None:
            headers[wire.IDEMPOTENCY_KEY] = call.key
        retrying = Retrying(
            stop=lambda state: stop_after_attempt(_ATTEMPTS)(state) or _too_late(state),
            wait=self._pause, retry=retry_if_exception_type(_Again), sleep=self._sleep, reraise=True,
        )
        try:
            return retrying(attempt, headers)
        except _Failed as failed:
            error = failed.error
            error.attempts = int(retrying.statistics["attempt_number"])
            error.request_id = error.request_id or headers[wire.REQUEST_ID]
            raise error from failed.__cause__

    def _once(self, call: Call, headers: dict[str, str]) -> httpx.Response:
        with closing(self._open(call, headers)) as response:
            try:
                response.read()
            except httpx.RequestError as error:
                raise self._failed(call, error) from error
        return response

    def _open(self, call: Call, headers: dict[str, str]) -> httpx.Response:
        content: Any = call.content() if call.content else None
        if call.body is not None:
            content, headers = call.body.model_dump_json(), {**headers, "Content-Type": "application/json"}
        params = {name: value for name, value in (call.params or {}).items() if value is not None}
        request = self._http.build_request(call.method, call.path, params=params, content=content, headers=headers)
        try:
            response = self._http.send(request, stream=True)
            if response.is_success:
                return response
            with closing(response):
                response.read()
        except httpx.RequestError as error:
            raise self._failed(call, error) from error
        raise self._refused(call, response)

    def _failed(self, call: Call, error: httpx.RequestError) -> _Failed:
        return (_Again if call.repeatable else _Failed)(self._lost(error))

    def _lost(self, error: httpx.RequestError) -> Unavailable:
        what = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
        if isinstance(error, httpx.DecodingError):
            hint = "try again; if it stays so, look at what lies between here and there"
            return Unavailable(f"the answer of the server at {self.url} arrived damaged: {what}", hint=hint)
        hint = "is it running? is the URL right?"
        if "CERTIFICATE_VERIFY_FAILED" in what:
            hint = "is the URL right? SSL_CERT_FILE names the file of a certificate authority of your own"
        return Unavailable(f"the server at {self.url} can't be reached: {what}", hint=hint)

    def _refused(self, call: Call, response: httpx.Response) -> _Failed:
        error, code = self._error(call, response)
        again = response.status_code in _AGAIN or (response.status_code == 409 and code == wire.IN_PROGRESS)
        after = _retry_after(response)
        again = again and call.repeatable and (after is None or after <= _OBEYED_SECONDS)
        return (_Again if again else _Failed)(error, after)

    def _error(self, call: Call, response: httpx.Response) -> tuple[FMError, str]:
        """What the server says was wrong, and its code."""
        if response.headers.get("content-type", "").startswith(wire.PROBLEM):
            try:
                problem = wire.Problem.model_validate_json(response.content)
            except ValidationError:
                pass
            else:
                if problem.code != wire.UNKNOWN_ROUTE:
                    return wire.error_of(problem), problem.code
                raise_for = f"{self._who(response)} knows nothing of {call.method} {call.path}"
                return Unsupported(raise_for, hint=f"this is ftctl {fm.__version__}; upgrade the server"), problem.code
        if response.is_redirect:
            where = response.headers.get("location", "another address")
            hint = "log in with the URL that it has now"
            return _final(Unavailable(f"{self.url} sends on to {where}, which is not followed", hint=hint)), ""
        status = f"{response.status_code} {response.reason_phrase}".strip()
        error = Unavailable(f"{self.url} answered {status}", hint="a proxy in between, or no ftctl server at all?")
        error.retryable = response.status_code in _AGAIN
        return error, ""

    def _who(self, response: httpx.Response) -> str:
        version = response.headers.get(wire.SERVER_VERSION)
        return f"the server at {self.url}" + (f" (ftctl {version})" if version else "")

    def _pause(self, state: RetryCallState) -> float:
        failed = state.outcome.exception() if state.outcome else None
        if isinstance(failed, _Failed) and failed.after is not None:
            return failed.after
        most = min(_LONGEST, _SHORTEST * 4.0**state.attempt_number)
        return _SHORTEST + (most - _SHORTEST) * self._jitter()


class _Bearer(httpx.Auth):
    """Puts the token on each request, so that no repr of a client or its headers shows it."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = self._header
        yield request


def _final(error: FMError) -> FMError:
    error.retryable = False
    return error


def _too_late(state: RetryCallState) -> bool:
    deadline = until()
    return deadline is not None and time.monotonic() + state.upcoming_sleep >= deadline


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait; it may say them, or a moment."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
