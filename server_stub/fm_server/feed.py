"""Live events to many followers: one task asks the store what is new, and all who follow a run are told the same bytes.

A follower holds no thread and no connection to the store. It reads what lies behind in pages, and what is new from the
run's latest lines, which all its followers share.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from fm import wire
from fm.backends.base import PAGE_LIMIT
from fm.backends.stored import StoreBackend
from fm.errors import FMError, NotFound, Unauthorised
from fm.types import Event
from fm_server.counters import Counters
from fm_server.paths import Paths

logger = logging.getLogger("fm.server")

_TICK_SECONDS = 0.1
_TICKS_BETWEEN_TOKENS = 10
"""How often the followers' tokens are looked at: one that is revoked ends its streams within a second."""
_BREATH = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Line:
    """An event as it is sent."""

    seq: int
    text: bytes
    last: bool


@dataclass
class _Followed:
    """A run that somebody follows: its latest lines without a gap, up to `head`."""

    view: StoreBackend
    run: str
    followers: int = 0
    head: int | None = None
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=PAGE_LIMIT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    error: FMError | None = None

    def since(self, seq: int) -> list[Line] | None:
        """The lines above `seq`; None where some of them are only in the store."""
        if self.head is None or seq < self.head - len(self.lines):
            return None
        return [line for line in self.lines if line.seq > seq] if seq < self.head else []

    def tell(self) -> None:
        """Wakes everybody who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


class Feed:
    """All streams of one server."""

    def __init__(self, backend: StoreBackend, paths: Paths, counters: Counters) -> None:
        self._backend = backend
        self._paths = paths
        self._counters = counters
        self._runs: dict[tuple[str, str], _Followed] = {}
        self._tokens: Counter[str] = Counter()
        self._lapsed: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Ends every stream, unfinished: those who follow come back to the next server."""
        self._closed = True
        for followed in self._runs.values():
            followed.tell()

    async def follow(self, view: StoreBackend, run: str, after: int) -> AsyncIterator[bytes]:
        """The stream of the events of `run` (an id) above `after`, as `view` sees them."""
        followed = self._join(view, run)
        lines: list[Line] | None = None
        try:
            yield _BREATH  # the answer's head goes out with the first bytes
            while not self._closed:
                changed = followed.changed  # before the look, or a change between the two would be missed
                if view.principal.token_id in self._lapsed:
                    raise Unauthorised("the token has been revoked, or has expired", hint="ask for a new one")
                if followed.error:
                    yield _message("error", wire.problem_of(followed.error).model_dump_json())
                    return
                if lines is None:
                    lines, ended = await run_in_threadpool(self._catch_up, view, run, after)
                    if ended and not lines:
                        yield _message("end", "{}")
                        return
                if lines:
                    after = lines[-1].seq
                    yield b"".join(line.text for line in lines)
                    if lines[-1].last:
                        yield _message("end", "{}")
                        return
                elif not await _within(changed.wait(), wire.KEEP_ALIVE_SECONDS):
                    yield _BREATH
                lines = followed.since(after)
        except FMError as error:
            yield _message("error", self._paths.hide(wire.problem_of(error).model_dump_json()))
        finally:
            self._leave(followed, view)

    def _join(self, view: StoreBackend, run: str) -> _Followed:
        followed = self._runs.setdefault((view.principal.team, run), _Followed(view, run))
        followed.followers += 1
        self._tokens[view.principal.token_id] += 1
        self._counters.followers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_again_and_again())
        return followed

    def _leave(self, followed: _Followed, view: StoreBackend) -> None:
        self._tokens -= Counter([view.principal.token_id])
        self._counters.followers -= 1
        followed.followers -= 1
        if not followed.followers:
            del self._runs[(followed.view.principal.team, followed.run)]

    async def _look_again_and_again(self) -> None:
        for tick in itertools.count():
            if not self._runs or self._closed:
                return
            known = {key: followed.head for key, followed in self._runs.items()}
            try:
                news = await run_in_threadpool(self._look, list(self._runs.values()), known)
                if tick % _TICKS_BETWEEN_TOKENS == 0:
                    self._lapsed = await run_in_threadpool(self._backend.store.access.lapsed, list(self._tokens))
                    for each in self._runs.values() if self._lapsed else ():
                        each.tell()
            except Exception as failure:
                # Whatever it is, such as a locked store: who follows waits, and nothing is lost by looking again.
                logger.error("can't look for new events: %s", failure, exc_info=not isinstance(failure, FMError))
                news = {}
            for key, (head, lines, error) in news.items():
                if (followed := self._runs.get(key)) and followed.head == known[key]:
                    followed.head, followed.error = head, error
                    followed.lines.extend(lines)
                    followed.tell()
            await asyncio.sleep(_TICK_SECONDS)

    def _look(
        self, runs: Sequence[_Followed], known: dict[tuple[str, str], int | None]
    ) -> dict[tuple[str, str], tuple[int | None, list[Line], FMError | None]]:
        """What has changed: new head and new lines of each run."""
        self._backend.tend()
        heads = self._backend.store.heads([followed.run for followed in runs])
        news: dict[tuple[str, str], tuple[int | None, list[Line], FMError | None]] = {}
        for followed in runs:
            key = (followed.view.principal.team, followed.run)
            before, head = known[key], heads.get(followed.run)
            if head is None:
                news[key] = (before, [], NotFound(f"run {followed.run} has been removed"))
            elif before is None:
                news[key] = (head, [], None)
            elif head > before and (lines := self._page(followed.view, followed.run, before)):
                news[key] = (lines[-1].seq, lines, None)
        return news

    def _catch_up(self, view: StoreBackend, run: str, after: int) -> tuple[list[Line], bool]:
        """A page of lines above `after`, and whether the run had ended before it was read."""
        ended = view.runs.get(run).status.is_terminal()
        return self._page(view, run, after), ended

    def _page(self, view: StoreBackend, run: str, after: int) -> list[Line]:
        return [self._line(event) for event in view.runs.events(run, after=after)]

    def _line(self, event: Event) -> Line:
        text = self._paths.event(event).model_dump_json()
        return Line(event.seq, f"id: {event.seq}\n".encode() + _message("event", text), event.is_terminal_state())


async def _within(coming: Awaitable[object], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await coming
    except TimeoutError:
        return False
    return True


def _message(kind: str, data: str) -> bytes:
    # JSON has no line ends, so that one line holds it.
    return f"event: {kind}\ndata: {data}\n\n".encode()
