"""Reading and following a run's events, logs and figures, and waiting for its end: written once, for every backend."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fm.deadline import within
from fm.display import one_line
from fm.errors import RunFailed, RunStopped, Unavailable, WaitTimeout
from fm.lifecycle import Status
from fm.types import Event, LogChunk, MetricRow

if TYPE_CHECKING:
    from fm.run import Run

OUTAGE_SECONDS = 300.0
"""How long a server may be away while a run of it is followed or waited for."""
_AWAY_SECONDS = 1.0
"""Until it is asked again."""
_A_LOOK_SECONDS = 1.0
"""What one look at a run gets even where the time is up."""


def read_events(run: Run, after: int = 0) -> Iterator[Event]:
    """The events above the sequence number `after` that there are now."""
    while page := run.backend.runs.events(run.id, after=after):
        yield from page
        after = page[-1].seq


def read_metrics(run: Run, keys: Sequence[str] | None, after_step: int = -1) -> Iterator[MetricRow]:
    """The figures of steps above `after_step` that there are now."""
    step = after_step
    while page := run.backend.runs.metrics(run.id, keys=keys, after_step=step):
        yield from page
        step = page[-1].step


def read_logs(run: Run) -> Iterator[str]:
    """The log that there is now, in pieces."""
    offset = 0
    while (chunk := run.backend.runs.logs(run.id, offset=offset)).text:
        yield chunk.text
        offset = chunk.next_offset


def follow_events(run: Run) -> Iterator[Event]:
    """The run's events, those to come too, until the one with which it ends."""
    with detached_by_interrupt(run):
        yield from run.backend.runs.follow(run.id)
        run.refresh()


def follow_logs(run: Run, offset: int = 0) -> Iterator[str]:
    """The run's log from `offset` on as it grows, until the run has ended."""
    outage = _Outage()
    with detached_by_interrupt(run):
        while True:
            ended, chunk = False, LogChunk(text="", next_offset=offset)
            with outage.borne():
                # In this order, since the log may grow between the two questions.
                ended = run.refresh().status.is_terminal()
                chunk = run.backend.runs.logs(run.id, offset=offset)
            if chunk.text:
                offset = chunk.next_offset
                yield chunk.text
            elif ended:
                return
            else:
                time.sleep(run.backend.poll_seconds)


def wait_for(
    run: Run,
    *,
    timeout: float | None = None,
    raise_on_failure: bool = True,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Run:
    """See `Run.wait`."""
    from fm.progress import show_progress

    deadline = None if timeout is None else clock() + timeout
    after, outage = 0, _Outage(clock)
    with detached_by_interrupt(run), show_progress(run) as show:
        while True:
            ended, pause = False, _AWAY_SECONDS
            with outage.borne(), within(None if deadline is None else max(_A_LOOK_SECONDS, deadline - clock())):
                ended = run.refresh().status.is_terminal()
                for event in read_events(run, after):
                    show(event)
                    after = event.seq
                pause = run.backend.poll_seconds
            if ended:
                break
            if deadline is not None:
                if (left := deadline - clock()) <= 0:
                    raise WaitTimeout(
                        f"run {run.name} is still {run.status.value} after {timeout:g} s",
                        hint=f"it goes on; wait again, with `ftctl runs wait {run.name}`",
                    )
                pause = min(pause, left)
            sleep(pause)
    if raise_on_failure:
        raise_for_status(run)
    return run


def raise_for_status(run: Run) -> None:
    """Raises for a run that has ended without a result.

    Raises:
        RunFailed: its status is FAILED.
        RunStopped: its status is STOPPED.
    """
    look = f"`ftctl runs logs {run.name}` shows more"
    if run.status is Status.FAILED:
        what = one_line(f"run {run.name} failed: {run.reason}")
        raise RunFailed(what, run=run, fault=run.fault.value if run.fault else "", hint=look)
    if run.status is Status.STOPPED:
        what = one_line(f"run {run.name} was stopped: {run.reason}")
        raise RunStopped(what, run=run, hint=f"go on with `ftctl runs resume {run.name}`")


class _Outage:
    """Bears with a server that is away for a while, as it is for a restart."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered = clock()

    @contextmanager
    def borne(self) -> Iterator[None]:
        """Ends the block quietly where it could not ask the server, unless that has lasted too long."""
        try:
            yield
        except Unavailable as error:
            asked_a_server = error.attempts > 0
            if not (asked_a_server and error.retryable) or self._clock() - self._answered > OUTAGE_SECONDS:
                raise
        else:
            self._answered = self._clock()


@contextmanager
def detached_by_interrupt(run: Run) -> Iterator[None]:
    """Says at Ctrl-C that the run goes on, and how to come back to it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not getattr(interrupt, "ftctl_said", False):  # once, where one such block lies in another
            print(f"\ndetached; {run.name} goes on. Come back with: ftctl runs wait {run.name}", file=sys.stderr)
            interrupt.ftctl_said = True  # type: ignore[attr-defined]
        raise
