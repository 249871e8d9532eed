"""Statuses change by events alone, and a terminal status is final."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.errors import Conflict
from fm.lifecycle import ACTIVE, TERMINAL, EventType, Status, apply
from fm.request import TrainRequest
from fm.types import DataRef, Event, ModelRef, RunRecord
from support.stores import moment


def record(status: Status = Status.PENDING) -> RunRecord:
    return RunRecord(
        id="run-1",
        name="one",
        status=status,
        request=TrainRequest(model="m", train_data_path="d"),
        model=ModelRef(kind="hub", name="m"),
        train_data=DataRef(path="/d", digest="0", bytes=1),
        created_at=moment(),
    )


def event(kind: EventType, at: float = 0.0, **data: object) -> Event:
    return Event(type=kind, time=moment(at), message=kind.value, data=data)


_DATA = {EventType.CHECKPOINT_SAVED: {"step": 3}, EventType.CHECK_PASSED: {"counts": {"examples": 4}}}


def test_an_undisturbed_run_passes_every_status_once() -> None:
    run, seen = record(), [Status.PENDING]
    way = "CREATED CLAIMED CHECK_PASSED STARTED TRAIN_STARTED TRAIN_UPDATED TRAIN_FINISHED COMPLETED".split()
    for name in way:
        run = apply(run, event(EventType(name), **_DATA.get(EventType(name), {})))
        if run.status is not seen[-1]:
            seen.append(run.status)
    assert [status.value for status in seen] == ["PENDING", "QUEUED", "STARTING", "RUNNING", "COMPLETED"]


@given(st.lists(st.sampled_from(list(EventType)), max_size=30))
def test_whatever_comes_a_terminal_status_is_final_and_refusals_change_nothing(kinds: list[EventType]) -> None:
    run = record()
    for at, kind in enumerate(kinds):
        before = run
        try:
            run = apply(run, event(kind, at, **_DATA.get(kind, {})))
        except Conflict:
            assert run is before
            continue
        assert not before.status.is_terminal()
        assert run.status.is_terminal() == kind.is_terminal
        assert (run.completed_at is not None) == run.status.is_terminal()
        assert run.running_seconds >= before.running_seconds


@given(st.sampled_from(sorted(TERMINAL)), st.sampled_from(list(EventType)))
def test_no_event_follows_a_terminal_status(status: Status, kind: EventType) -> None:
    with pytest.raises(Conflict):
        apply(record(status), event(kind, **_DATA.get(kind, {})))


def test_a_run_that_is_being_cancelled_stays_so_while_its_last_events_arrive() -> None:
    run = apply(record(Status.STARTING), event(EventType.CANCEL_REQUESTED))
    run = apply(run, event(EventType.CHECKPOINT_SAVED, step=7))
    assert run.status is Status.TERMINATING
    assert apply(run, event(EventType.CANCELED)).status is Status.STOPPED
    assert apply(run, event(EventType.COMPLETED)).status is Status.COMPLETED


def test_downtime_between_attempts_is_not_running_time() -> None:
    run = apply(record(Status.STARTING), event(EventType.STARTED, 0))
    run = apply(run, event(EventType.REQUEUED, 500, ran_seconds=60, counts_as_attempt=True))
    assert (run.running_seconds, run.fruitless, run.status) == (60, 1, Status.QUEUED)
    run = apply(apply(run, event(EventType.CLAIMED, 900)), event(EventType.STARTED, 1000))
    run = apply(run, event(EventType.COMPLETED, 1040))
    assert run.running_seconds == 100
    assert run.started_at == moment(0)


def test_a_newer_checkpoint_makes_the_attempts_fruitful_again() -> None:
    run = apply(record(Status.STARTING), event(EventType.REQUEUED, counts_as_attempt=True))
    run = apply(apply(run, event(EventType.CLAIMED)), event(EventType.CHECKPOINT_SAVED, step=5))
    assert (run.fruitless, run.checkpoint_step) == (0, 5)


def test_statuses_are_ordered_and_read_leniently() -> None:
    assert Status.QUEUED.before(Status.RUNNING) and Status.COMPLETED.after(Status.RUNNING)
    assert Status.from_string("running") is Status.RUNNING
    assert Status.from_string("HIBERNATING") is Status.UNKNOWN
    assert not Status.UNKNOWN.is_terminal()
    assert ACTIVE.isdisjoint(TERMINAL)


def test_the_reference_event_names_are_all_there() -> None:
    names = (
        "CREATED CHECK_PASSED CHECK_FAILED STARTED DATA_VALIDATED MODEL_INITIALIZED TRAIN_STARTED TRAIN_UPDATED "
        "CHECKPOINT_SAVED TRAIN_FINISHED COMPLETED STOPPED CANCELED FAILED FAILED_EXCEPTION REQUEUED"
    ).split()
    assert [EventType(name).value for name in names] == names
    ends = {kind for kind in EventType if kind.is_terminal}
    assert ends == {EventType(n) for n in "CHECK_FAILED COMPLETED STOPPED CANCELED FAILED FAILED_EXCEPTION".split()}
