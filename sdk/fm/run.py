"""`fm.Run`: a handle on one run, over the backend that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

from fm.backends.base import Backend
from fm.display import html_table, human_seconds, one_line
from fm.follow import follow_events, follow_logs, read_events, read_logs, read_metrics, wait_for
from fm.tables import Metrics
from fm.types import Checkpoint, Event, RunRecord

T = TypeVar("T")


class _Field(Generic[T]):
    """An attribute of `Run` that is read from its record."""

    def __init__(self, read: Callable[[RunRecord], T]) -> None:
        self._read = read

    @overload
    def __get__(self, run: None, owner: type) -> _Field[T]: ...
    @overload
    def __get__(self, run: Run, owner: type) -> T: ...
    def __get__(self, run: Run | None, owner: type) -> _Field[T] | T:
        return self if run is None else self._read(run.record)


class Run:
    """One run. Its fields are as of the last answer of the backend; `refresh()` asks again.

    Get one from `fm.create`, `fm.get` or `fm.list`. It stays with the backend that it came from.
    """

    id = _Field(lambda record: record.id)
    run_id = _Field(lambda record: record.id)
    """The same as `id`; the reference's name."""
    name = _Field(lambda record: record.name)
    status = _Field(lambda record: record.status)
    reason = _Field(lambda record: record.reason)
    """One sentence on why the status is what it is."""
    fault = _Field(lambda record: record.fault)
    """Who has to act on a failure: the user, infrastructure, or us."""
    exit_code = _Field(lambda record: record.exit_code)
    attempt = _Field(lambda record: record.attempt)
    """Training starts so far."""
    created_by = _Field(lambda record: record.owner)
    model = _Field(lambda record: record.request.model)
    """The model that the run starts from, as the request names it."""
    registered_model = _Field(lambda record: record.registered_model)
    """The result as ``catalog.schema.model/version``, once COMPLETED with `register_to`."""
    train_data_path = _Field(lambda record: record.request.train_data_path)
    register_to = _Field(lambda record: record.request.register_to)
    experiment_path = _Field(lambda record: record.request.experiment_path)
    experiment_id = _Field(lambda record: record.experiment_id)
    task_type = _Field(lambda record: record.request.task_type)
    eval_data_path = _Field(lambda record: record.request.eval_data_path)
    eval_prompts = _Field(lambda record: list(record.request.eval_prompts))
    custom_weights_path = _Field(lambda record: record.request.custom_weights_path)
    training_duration = _Field(lambda record: record.request.training_duration)
    learning_rate = _Field(lambda record: record.request.learning_rate)
    """The peak rate; None where it follows the method and the model."""
    context_length = _Field(lambda record: record.request.context_length)
    tags = _Field(lambda record: dict(record.request.tags))
    counts = _Field(lambda record: record.counts)
    """Examples, tokens, truncated and dropped rows; None until the data was tokenised."""
    created_at = _Field(lambda record: record.created_at)
    started_at = _Field(lambda record: record.started_at)
    estimated_end_time = _Field(lambda record: record.estimated_end_time)
    completed_at = _Field(lambda record: record.completed_at)
    parent = _Field(lambda record: record.parent)
    """The id of the run that this one resumes."""

    def __init__(self, backend: Backend, record: RunRecord) -> None:
        self.backend = backend
        self.record = record

    @property
    def details(self) -> dict[str, Any]:
        """Everything that is recorded of the run, as JSON-able values; the request's fields lie beside the run's."""
        values = self.record.model_dump(mode="json")
        return {**values.pop("request"), **values, "model": self.model, "resolved_model": values["model"]}

    @property
    def save_folder(self) -> str:
        """The run's folder; empty where that is not on this machine."""
        storage = self.backend.storage
        return str(storage.run(self.id).path) if storage else ""

    @property
    def run_progress(self) -> str:
        """As in "42 % (84 of 200 steps)"; empty before training, and "84 steps" where the end isn't known yet."""
        record = self.record
        if record.total_steps:
            share = min(1.0, record.step / record.total_steps)
            return f"{share:.0%} ({record.step:,} of {record.total_steps:,} steps)".replace("%", " %", 1)
        return f"{record.step:,} steps" if record.step else ""

    @property
    def formatted_eta(self) -> str:
        """Time to the estimated end, as in "1h 05m"; empty where there is no estimate."""
        from datetime import UTC, datetime

        end = self.record.estimated_end_time
        return human_seconds((end - datetime.now(UTC)).total_seconds()) if end else ""

    def refresh(self) -> Run:
        """Asks the backend for the run as it is now, and returns this same handle."""
        self.record = self.backend.runs.get(self.id)
        return self

    def wait(self, timeout: float | None = None, raise_on_failure: bool = True) -> Run:
        """Waits until the run has ended, showing its progress on stderr.

        Ctrl-C stops the waiting, not the run.

        Args:
            timeout: seconds; None waits for as long as it takes.
            raise_on_failure: raise when the run ends in FAILED or STOPPED; else return it.

        Raises:
            RunFailed, RunStopped: how it ended.
            WaitTimeout: the time is up; the run goes on.
        """
        return wait_for(self, timeout=timeout, raise_on_failure=raise_on_failure)

    def events(self, follow: bool = False) -> Iterator[Event]:
        """The run's events, oldest first; with `follow`, also those to come, until the run has ended."""
        return follow_events(self) if follow else read_events(self)

    def get_events(self) -> list[Event]:
        """The run's events so far."""
        return list(read_events(self))

    def metrics(self, keys: Sequence[str] | str | None = None) -> Metrics:
        """Figures by optimiser step, as in ``loss/train/total``; all of them, or those named by `keys`."""
        return Metrics(tuple(read_metrics(self, [keys] if isinstance(keys, str) else keys)))

    @overload
    def logs(self, follow: Literal[False] = False) -> str: ...
    @overload
    def logs(self, follow: Literal[True]) -> Iterator[str]: ...
    def logs(self, follow: bool = False) -> str | Iterator[str]:
        """What the training process printed; with `follow`, pieces of it as they come, until the run has ended."""
        return follow_logs(self) if follow else "".join(read_logs(self))

    def cancel(self, reason: str = "") -> Run:
        """Stops the run; if it is training, a checkpoint is saved first.

        Raises:
            Conflict: it has ended already.
        """
        self.record = self.backend.runs.cancel(self.id, reason=reason)
        return self

    def resume(self) -> Run:
        """A new run that goes on from the last checkpoint of this one, with its optimiser state.

        Raises:
            Conflict: the run has not ended, or it is COMPLETED, or has no checkpoint.
        """
        from fm.pending import new_key

        return Run(self.backend, self.backend.runs.resume(self.id, idempotency_key=new_key()))

    def checkpoints(self) -> list[Checkpoint]:
        """The whole checkpoints, oldest first."""
        return list(self.backend.runs.checkpoints(self.id))

    def plot(self, path: str | Path | None = None) -> Path | None:
        """Draws the loss over the steps: to a PNG at `path`, into the notebook, or into the terminal.

        Raises:
            MissingExtra: a picture needs matplotlib, which is not installed.
        """
        from fm.plot import plot_loss

        return plot_loss(self, Path(path) if path is not None else None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.id == self.id and other.backend is self.backend

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        facts = [self.name, self.status.value, self.run_progress, self.registered_model or "", self.id]
        return one_line(f"<Run {' · '.join(fact for fact in facts if fact)}>")

    def _repr_html_(self) -> str:
        shown = (
            *("name", "status", "reason", "run_progress", "formatted_eta", "model", "task_type", "train_data_path"),
            *("eval_data_path", "training_duration", "learning_rate", "register_to", "registered_model"),
            *("created_at", "started_at", "completed_at", "id"),
        )
        values = [(key, getattr(self, key)) for key in shown]
        return html_table(("Run", self.name), [(key, value) for key, value in values if value not in (None, "")])
