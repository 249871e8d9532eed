"""Every error that ftctl raises, in one tree.

::

    FMError
    ├── RequestError            a value in the request is wrong: says which field and what to write instead
    │   └── Unsupported         the chosen backend, launcher or method can't do this: says what to use instead
    ├── DataError               the data is wrong: up to 20 faults, each with file, line, field and remedy
    │   └── DataChanged         the data is not what it was when the run was created
    ├── NotFound                no run, model, checkpoint or file of that name
    ├── Conflict                it exists already, is still in use, or is in a state that forbids this
    ├── Unauthorised            no token, or one that is unknown, expired or revoked
    ├── Forbidden               the token lacks the scope, or the data set is sensitive: says which
    ├── Damaged                 the audit log, a backup or a stored file is not what was written: says where
    ├── MissingExtra            an optional part of ftctl is not installed: says the command that installs it
    ├── Unavailable             something outside the request is in the way; trying again later may help
    │   ├── DiskFull            no space left: says where, and how much is needed
    │   ├── HomeError           FM_HOME can't hold the run store (not writable, or a network disk)
    │   └── StoreError          the run store can't be read or written, or belongs to a newer ftctl
    ├── RunFailed               `wait` saw the run end in FAILED; carries the run
    ├── RunStopped              `wait` saw the run end in STOPPED; carries the run
    ├── WaitTimeout             `wait` gave up; the run goes on
    └── LeaseLost               another agent owns this run now; the write was refused

Rules for adding one: a caller must want to catch it apart from its neighbours; the message says what happened and
where, `hint` says what to do next; it survives pickling; its `exit_code` is one of the table in `docs/exit-codes.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class FMError(Exception):
    """The root of every error that ftctl raises on purpose.

    Attributes:
        message: what happened, and where.
        hint: what to do next; empty where the message says it all.
        retryable: whether the same call may succeed if it is made again later.
        request_id: of an answer of a server: the id under which its log has the request; else empty.
        attempts: how often a server was asked before this was raised; 0 where none was.
    """

    exit_code: ClassVar[int] = 1
    retryable: bool = False
    request_id: str = ""
    attempts: int = 0

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException pickles `args` only, and would lose the keyword fields.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[FMError], args: tuple[Any, ...], state: dict[str, Any]) -> FMError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class RequestError(FMError):
    """A value in the request is wrong. `field` is the parameter's name as the caller wrote it."""

    exit_code = 2

    def __init__(self, message: str, *, field: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class Unsupported(RequestError):
    """What was asked for is known, but can't be done by this backend, launcher, machine or version."""


@dataclass(frozen=True, slots=True)
class DataFault:
    """One thing that is wrong with the data.

    `line` counts from 1 (a JSON array's elements, CSV and Parquet rows count likewise); None concerns the whole file.
    `field` is a path such as ``messages[2].role``.
    """

    file: str
    line: int | None
    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = self.file + (f":{self.line}" if self.line is not None else "")
        return f"{where}: {self.field + ': ' if self.field else ''}{self.problem} → {self.remedy}"


class DataError(FMError):
    """The data is wrong. `faults` holds what was found, at most 20; `more` says that reading stopped there."""

    exit_code = 3

    def __init__(
        self, message: str, *, faults: Sequence[DataFault] = (), more: bool = False, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.faults = tuple(faults)
        self.more = more

    def __str__(self) -> str:
        lines = [self.message, *(f"  {fault}" for fault in self.faults)]
        if self.more:
            lines.append("  … reading stopped here; there may be more")
        if self.hint:
            lines.append(f"  → {self.hint}")
        return "\n".join(lines)


class DataChanged(DataError):
    """The data's digest is not the one recorded when the run was created."""


class NotFound(FMError):
    """No run, model, checkpoint, alias or file of that name in what the caller may see."""

    exit_code = 4


class Conflict(FMError):
    """It exists already, is still in use, or its state forbids this."""

    exit_code = 5


class Unauthorised(FMError):
    """No token was given, or it is unknown, expired or revoked."""

    exit_code = 10


class Forbidden(FMError):
    """The token is good, but lacks the scope for what was asked; or the data set is marked sensitive."""

    exit_code = 10


class Damaged(FMError):
    """The audit log, a backup or a stored file is not what was written."""

    exit_code = 11


class MissingExtra(FMError):
    """An optional part of ftctl is not installed. `extra` is its name, as in ``ftctl[local]``."""

    exit_code = 6

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message, hint=f"pip install 'ftctl[{extra}]'")
        self.extra = extra


class Unavailable(FMError):
    """Something outside the request is in the way; trying again later may help."""

    exit_code = 6
    retryable = True


class DiskFull(Unavailable):
    """No space is left where something had to be written; nothing half-written remains."""


class HomeError(Unavailable):
    """FM_HOME can't hold the run store."""


class StoreError(Unavailable):
    """The run store can't be read or written, or was written by a newer ftctl."""


class RunFailed(FMError):
    """`wait` saw the run end in FAILED. `run` is the `fm.Run`, `fault` who has to act."""

    exit_code = 7

    def __init__(self, message: str, *, run: Any = None, fault: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.run = run
        self.fault = fault


class RunStopped(FMError):
    """`wait` saw the run end in STOPPED: it was cancelled. `run` is the `fm.Run`."""

    exit_code = 8

    def __init__(self, message: str, *, run: Any = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.run = run


class WaitTimeout(FMError):
    """`wait` gave up after its timeout. The run goes on."""

    exit_code = 9


class LeaseLost(FMError):
    """Another agent owns this run now; what this one wanted to write was refused."""

    exit_code = 1
