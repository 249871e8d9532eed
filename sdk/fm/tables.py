"""What the verbs return where there are several things: lists and figures, with a table for people and for pandas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fm.display import html_table, local_time, text_table
from fm.errors import MissingExtra
from fm.types import MetricRow

if TYPE_CHECKING:
    import pandas

    from fm.run import Run

_COLUMNS = ("name", "status", "progress", "model", "owner", "created", "id")


class RunList(list["Run"]):
    """Runs, newest first: a list that shows itself as a table."""

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each run, one column for each field.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return _pandas().DataFrame([run.details for run in self])

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for run in self:
            progress, created = run.run_progress, local_time(run.created_at)
            yield run.name, run.status.value, progress, run.model, run.created_by, created, run.id

    def __repr__(self) -> str:
        return text_table(_COLUMNS, self._cells()) if self else "no runs"

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._cells())


@dataclass(frozen=True)
class Metrics(Sequence[MetricRow]):
    """A run's figures, one row for each optimiser step that has any, in order."""

    rows: tuple[MetricRow, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the figures, as in ``loss/train/total``, in the order of their first appearance."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.values))

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) for each step that has the figure `key`."""
        return [(row.step, row.values[key]) for row in self.rows if key in row.values]

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with the step as its index, and the columns `time` and one for each key.

        Raises:
            MissingExtra: pandas is not installed.
        """
        records = [{"step": row.step, "time": row.time, **row.values} for row in self.rows]
        frame = _pandas().DataFrame(records, columns=["step", "time", *self.keys])
        return frame.set_index("step")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            yield str(row.step), *(f"{row.values[key]:.6g}" if key in row.values else "" for key in self.keys)

    def __repr__(self) -> str:
        return text_table(("step", *self.keys), self._cells()) if self.rows else "no metrics yet"

    def _repr_html_(self) -> str:
        return html_table(("step", *self.keys), self._cells())


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise MissingExtra("to_pandas() needs pandas, not installed here", extra="pandas") from error
    return pandas
