"""Ending a run before its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fm
from contract.suite.common import PATIENCE, Contract
from fm.backends.base import Backend
from fm.errors import Conflict, NotFound, RunStopped
from fm.lifecycle import EventType, Status
from support.waiting import until


class CancelContract(Contract):
    """Cancelling, resuming and deleting."""

    def test_a_cancelled_run_is_stopped_with_a_checkpoint_and_its_reason(self, stopped: fm.Run) -> None:
        assert stopped.status is Status.STOPPED
        assert stopped.checkpoints()
        assert stopped.get_events()[-1].type is EventType.CANCELED
        assert any("seen enough" in event.message for event in stopped.events())

    def test_waiting_for_a_stopped_run_raises(self, stopped: fm.Run) -> None:
        with pytest.raises(RunStopped):
            stopped.wait(PATIENCE)

    def test_an_ended_run_cannot_be_cancelled(self, stopped: fm.Run, backend: Backend) -> None:
        before = stopped.get_events()
        with pytest.raises(Conflict):
            stopped.cancel()
        assert fm.cancel(stopped, backend=backend) == 0
        assert stopped.get_events() == before

    def test_cancelling_twice_is_cancelling_once(self, make: Callable[..., fm.Run]) -> None:
        run = make(**self.endless)
        run.cancel()
        if not run.refresh().status.is_terminal():
            run.cancel()
        ended = run.wait(PATIENCE, raise_on_failure=False)
        asked = (EventType.CANCEL_REQUESTED, EventType.CANCELED)
        assert ended.status is Status.STOPPED
        assert sorted(event.type for event in ended.events() if event.type in asked) in (
            [EventType.CANCELED],
            sorted(asked),
        )

    def test_a_resumed_run_goes_on_from_the_last_checkpoint(self, stopped: fm.Run, backend: Backend) -> None:
        child = stopped.resume()
        assert child.parent == stopped.id and child != stopped
        until(
            lambda: child.refresh().status is Status.RUNNING, "the child's training", seconds=PATIENCE,
            every=backend.poll_seconds,
        )  # fmt: skip
        started = next(event for event in child.events() if event.type is EventType.TRAIN_STARTED)
        assert started.data["step"] == stopped.checkpoints()[-1].step
        with pytest.raises(Conflict):
            stopped.backend.runs.delete(stopped.id)
        child.cancel()
        assert child.wait(PATIENCE, raise_on_failure=False).status is Status.STOPPED

    def test_a_completed_run_cannot_be_resumed(self, done: fm.Run) -> None:
        with pytest.raises(Conflict):
            done.resume()

    def test_only_an_ended_run_can_be_deleted(self, make: Callable[..., fm.Run], backend: Backend) -> None:
        run = make(**self.endless)
        with pytest.raises(Conflict):
            fm.delete(run, backend=backend)
        run.cancel()
        run.wait(PATIENCE, raise_on_failure=False)
        fm.delete(run, backend=backend)
        with pytest.raises(NotFound):
            backend.runs.get(run.id)
