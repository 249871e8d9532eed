"""A run's statuses, its events, and the one function by which an event changes a run."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fm.errors import Conflict

if TYPE_CHECKING:
    from fm.types import Event, RunRecord


class Status(StrEnum):
    """Where a run stands. Ordered: a later status compares as `after` an earlier one."""

    PENDING = "PENDING"
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def from_string(cls, text: str) -> Status:
        """The status of that name in any case; UNKNOWN for one that this version doesn't know."""
        try:
            return cls(text.upper())
        except ValueError:
            return cls.UNKNOWN

    @classmethod
    def _missing_(cls, _value: object) -> Status:
        # A record written by a newer ftctl must still be readable.
        return cls.UNKNOWN

    def is_terminal(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self in TERMINAL

    def before(self, other: Status) -> bool:
        """Whether a run passes this status earlier than `other`."""
        return _ORDER[self] < _ORDER[other]

    def after(self, other: Status) -> bool:
        """Whether a run passes this status later than `other`."""
        return _ORDER[self] > _ORDER[other]


TERMINAL = frozenset({Status.COMPLETED, Status.STOPPED, Status.FAILED})
ACTIVE = frozenset({Status.STARTING, Status.RUNNING, Status.TERMINATING})
"""Statuses in which an agent holds the run's lease."""
_ORDER = {status: position for position, status in enumerate(Status)}


class Fault(StrEnum):
    """Who has to act on a failure."""

    USER = "user"
    """The request or the data has to change."""
    INFRASTRUCTURE = "infrastructure"
    """A machine, a disk or a process gave way."""
    INTERNAL = "internal"
    """ftctl or a library it uses is wrong."""


class EventType(StrEnum):
    """What happened. The first sixteen are the reference's."""

    CREATED = "CREATED"
    CHECK_PASSED = "CHECK_PASSED"
    CHECK_FAILED = "CHECK_FAILED"
    STARTED = "STARTED"
    DATA_VALIDATED = "DATA_VALIDATED"
    MODEL_INITIALIZED = "MODEL_INITIALIZED"
    TRAIN_STARTED = "TRAIN_STARTED"
    TRAIN_UPDATED = "TRAIN_UPDATED"
    CHECKPOINT_SAVED = "CHECKPOINT_SAVED"
    TRAIN_FINISHED = "TRAIN_FINISHED"
    COMPLETED = "COMPLETED"
    STOPPED = "STOPPED"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    FAILED_EXCEPTION = "FAILED_EXCEPTION"
    REQUEUED = "REQUEUED"
    CLAIMED = "CLAIMED"
    """An agent took the run from the queue."""
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    WARNING = "WARNING"
    """Something the user should look at; the run goes on."""
    SAMPLES_GENERATED = "SAMPLES_GENERATED"
    """Answers to `eval_prompts`, in ``data["samples"]``."""
    UNKNOWN = "UNKNOWN"

    @classmethod
    def _missing_(cls, _value: object) -> EventType:
        return cls.UNKNOWN

    @property
    def is_terminal(self) -> bool:
        """Whether a run ends with this event."""
        return _STATUS_AFTER.get(self) in TERMINAL


_STATUS_AFTER = {
    EventType.CREATED: Status.QUEUED,
    EventType.CLAIMED: Status.STARTING,
    EventType.CHECK_FAILED: Status.FAILED,
    EventType.TRAIN_STARTED: Status.RUNNING,
    EventType.CANCEL_REQUESTED: Status.TERMINATING,
    EventType.REQUEUED: Status.QUEUED,
    EventType.COMPLETED: Status.COMPLETED,
    EventType.STOPPED: Status.STOPPED,
    EventType.CANCELED: Status.STOPPED,
    EventType.FAILED: Status.FAILED,
    EventType.FAILED_EXCEPTION: Status.FAILED,
}

_ALLOWED_FROM = {
    EventType.CREATED: {Status.PENDING},
    EventType.CLAIMED: {Status.QUEUED},
    EventType.TRAIN_STARTED: ACTIVE,
    EventType.CANCEL_REQUESTED: ACTIVE,
    EventType.REQUEUED: {Status.STARTING, Status.RUNNING},
    EventType.COMPLETED: ACTIVE,
}
"""Where an event is only meaningful in some statuses. A terminal status allows none."""

_PROGRESS = ("step", "total_steps", "epoch", "tokens", "estimated_end_time")


def apply(run: RunRecord, event: Event) -> RunRecord:
    """The run after `event`. Nothing else changes a status.

    Raises:
        Conflict: the run's status does not allow that event; a terminal status allows none.
    """
    if run.status.is_terminal() or run.status not in _ALLOWED_FROM.get(event.type, set(Status)):
        raise Conflict(f"run {run.name} is {run.status.value}, which {event.type.value} can't follow")
    changes: dict[str, Any] = {}
    # A run that is being cancelled stays TERMINATING while its trainer's last events still arrive.
    if (status := _STATUS_AFTER.get(event.type)) and not (
        run.status is Status.TERMINATING and not status.is_terminal()
    ):
        # Training needs no reason; what led to any other status is said by its event.
        reason = "" if status is Status.RUNNING else event.message
        changes |= {"status": status, "reason": reason, "actor": str(event.data.get("actor", ""))}
    changes |= _details(run, event)
    if event.type.is_terminal:
        changes |= {"completed_at": event.time, "estimated_end_time": None}
        changes |= {key: event.data[key] for key in ("fault", "exit_code") if key in event.data}
    if event.type.is_terminal or event.type is EventType.REQUEUED:
        changes |= {
            "running_seconds": run.running_seconds + _ran(run, event),
            "attempt_started_at": None,
        }
    # Validated, because an event's data comes from another process.
    return type(run).model_validate(run.model_dump() | changes)


def _details(run: RunRecord, event: Event) -> dict[str, Any]:
    data = event.data
    match event.type:
        case EventType.CLAIMED:
            return {"launcher": data.get("launcher", run.launcher)}
        case EventType.CHECK_PASSED:
            return {"counts": data.get("counts"), "eval_counts": data.get("eval_counts")}
        case EventType.STARTED:
            return {
                "attempt": data.get("attempt", run.attempt + 1),
                "started_at": run.started_at or event.time,
                "attempt_started_at": event.time,
            }
        case EventType.TRAIN_STARTED | EventType.TRAIN_UPDATED | EventType.TRAIN_FINISHED:
            return {key: data[key] for key in _PROGRESS if key in data}
        case EventType.CHECKPOINT_SAVED:
            return {"checkpoint_step": data["step"], "step": max(run.step, data["step"]), "fruitless": 0}
        case EventType.REQUEUED:
            return {
                "fruitless": run.fruitless + bool(data.get("counts_as_attempt")),
                "starved": run.starved + bool(data.get("starved")),
            }
        case EventType.WARNING if run.status is Status.QUEUED:
            return {"reason": event.message}
        case EventType.COMPLETED:
            return {"registered_model": data.get("registered_model")}
        case _:
            return {}


def _ran(run: RunRecord, event: Event) -> float:
    """Seconds of training that the attempt now ending adds: as measured by the agent, else until the event."""
    if run.attempt_started_at is None:
        return 0.0
    elapsed = (event.time - run.attempt_started_at).total_seconds()
    return max(0.0, float(event.data.get("ran_seconds", elapsed)))
