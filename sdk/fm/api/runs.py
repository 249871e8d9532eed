"""The verbs that look at runs and act on them."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date, datetime
from typing import Any, Literal, overload

from fm.backends.base import PAGE_LIMIT, Backend, RunFilter
from fm.context import current
from fm.errors import Conflict, RequestError
from fm.lifecycle import Status
from fm.run import Run
from fm.tables import RunList
from fm.types import Checkpoint, Event, RunRecord
from fm.when import parse_moment

Moment = datetime | date | str


def get(run: str | Run, *, backend: str | Backend | None = None) -> Run:
    """The run of that id, of the beginning of an id that no other has, or the latest of that name, as it is now.

    Raises:
        NotFound: there is none.
    """
    if isinstance(run, Run):
        return run.refresh()
    where = current(backend)
    return Run(where, where.runs.get(run))


def list(
    training_runs: str | Run | Iterable[str | Run] | None = None,
    experiment_id: str | None = None,
    *,
    statuses: str | Status | Iterable[str | Status] | None = None,
    user_emails: str | Iterable[str] | None = None,
    before: Moment | None = None,
    after: Moment | None = None,
    include_details: bool = True,
    limit: int | None = 100,
    backend: str | Backend | None = None,
) -> RunList:
    """The runs that fit all conditions, newest first.

    Args:
        training_runs: runs, names (also globs, as "qa-*") or beginnings of ids.
        experiment_id: only runs of this experiment.
        statuses: only runs in one of these.
        user_emails: only runs that one of these users created.
        before: only runs created before this moment: a `datetime`, a `date`, ISO text, or "2h" (ago).
        after: only runs created at or after this moment.
        include_details: accepted for scripts; the details are always there.
        limit: at most so many; None for all.

    Raises:
        RequestError: a status or a moment is none.
    """
    del include_details
    where = current(backend)
    wanted = RunFilter(
        statuses=frozenset(_status(status) for status in _several(statuses)),
        owners=frozenset(_several(user_emails)),
        before=parse_moment(before, field="before") if before is not None else None,
        after=parse_moment(after, field="after") if after is not None else None,
        experiment_id=experiment_id,
        limit=PAGE_LIMIT,
    )
    if training_runs is None:
        records = _pages(where, wanted, limit)
    else:
        names = [run.id if isinstance(run, Run) else run for run in _several(training_runs)]
        found = {record.id: record for name in names for record in _pages(where, replace(wanted, name=name), limit)}
        records = sorted(found.values(), key=lambda record: (record.created_at, record.id), reverse=True)[:limit]
    return RunList(Run(where, record) for record in records)


def cancel(
    runs: str | Run | Iterable[str | Run] | None = None,
    experiment_id: str | None = None,
    *,
    reason: str = "",
    backend: str | Backend | None = None,
) -> int:
    """Cancels runs, or all those of an experiment. Returns how many; those that had ended are passed over.

    Raises:
        NotFound: there is no run of one of these names.
        RequestError: neither runs nor an experiment are named.
    """
    if runs is None and experiment_id is None:
        raise RequestError("cancel which runs?", field="runs", hint="pass runs, or experiment_id")
    chosen = [get(run, backend=backend) for run in _several(runs)]
    if experiment_id is not None:
        chosen += list(experiment_id=experiment_id, limit=None, backend=backend)
    return sum(_cancel_if_live(run, reason) for run in dict.fromkeys(chosen))


@overload
def get_events(run: str | Run, follow: Literal[False] = False) -> builtins.list[Event]: ...
@overload
def get_events(run: str | Run, follow: Literal[True]) -> Iterator[Event]: ...
def get_events(run: str | Run, follow: bool = False) -> builtins.list[Event] | Iterator[Event]:
    """The run's events so far, oldest first; with `follow` an iterator over those to come too, until it has ended."""
    handle = get(run)
    return handle.events(follow=True) if follow else handle.get_events()


def get_checkpoints(run: str | Run) -> builtins.list[Checkpoint]:
    """The run's whole checkpoints, oldest first. Each can be passed on as `custom_weights_path`."""
    return get(run).checkpoints()


@overload
def wait(  # type: ignore[overload-overlap]  # a text is an iterable of texts too, but here it is one name
    run: str | Run, timeout: float | None = None, raise_on_failure: bool = True
) -> Run: ...
@overload
def wait(run: Iterable[str | Run], timeout: float | None = None, raise_on_failure: bool = True) -> RunList: ...
def wait(
    run: str | Run | Iterable[str | Run], timeout: float | None = None, raise_on_failure: bool = True
) -> Run | RunList:
    """Waits until the run, or each of several, has ended; `timeout` is in seconds, for all of them together.

    Raises:
        RunFailed, RunStopped: how one ended, once all have; not with `raise_on_failure=False`.
        WaitTimeout: the time is up; the runs go on.
    """
    import time

    from fm.follow import raise_for_status

    if isinstance(run, (str, Run)):
        return get(run).wait(timeout, raise_on_failure)
    deadline = None if timeout is None else time.monotonic() + timeout
    runs = RunList(get(each) for each in run)
    for each in runs:
        each.wait(None if deadline is None else max(0.0, deadline - time.monotonic()), raise_on_failure=False)
    for each in runs if raise_on_failure else ():
        raise_for_status(each)
    return runs


def delete(run: str | Run, *, backend: str | Backend | None = None) -> None:
    """Removes an ended run with its folder. A model that it registered stays.

    Raises:
        Conflict: the run has not ended.
    """
    handle = get(run, backend=backend)
    handle.backend.runs.delete(handle.id)


@overload
def _several(values: str | Iterable[str] | None) -> builtins.list[str]: ...
@overload
def _several(values: str | Run | Iterable[str | Run] | None) -> builtins.list[str | Run]: ...
def _several(values: Any) -> Any:
    """`values` as a list; one run or one text is a list of one."""
    if values is None:
        return []
    return [values] if isinstance(values, (str, Run)) else [*values]


def _status(status: str | Status) -> Status:
    known = Status.from_string(status)
    if known is Status.UNKNOWN and status.upper() != Status.UNKNOWN:
        raise RequestError(
            f"there is no status {status!r}", field="statuses", hint=f"one of {', '.join(Status.__members__)}"
        )
    return known


def _pages(where: Backend, wanted: RunFilter, limit: int | None) -> builtins.list[RunRecord]:
    """All that fits, or the first `limit`, page by page."""
    records: builtins.list[RunRecord] = []
    while limit is None or len(records) < limit:
        size = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - len(records))
        page = where.runs.list(replace(wanted, limit=size, cursor=records[-1].id if records else None))
        records += page
        if len(page) < size:
            break
    return records


def _cancel_if_live(run: Run, reason: str) -> bool:
    if run.status.is_terminal():
        return False
    try:
        run.cancel(reason)
    except Conflict:  # it ended between the question and the order
        return False
    return True
