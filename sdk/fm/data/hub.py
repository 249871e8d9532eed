"""Data sets of the Hugging Face hub, read through `datasets`, which fetches them once and keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fm.data.readers import pairs_of
from fm.errors import MissingExtra, RequestError, Unavailable

if TYPE_CHECKING:
    from fm.data.source import Meter

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.\[\]:%-]+)?")
"""``org/name`` or ``org/name/split``; the split is ``train`` where none is given."""


def rows(name: str, meter: Meter | None) -> Iterator[tuple[str, int, Any]]:
    """The rows of the data set's split. `meter` sees each row as JSON: the hub's file formats vary.

    Raises:
        MissingExtra: `datasets` is not installed.
        Unavailable: the hub can't be reached.
        RequestError: there is no such data set or split.
    """
    if meter:
        meter.begin(name, 0)
    for number, row in enumerate(_load(name), start=1):
        if meter:
            text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            meter.feed(memoryview(text.encode("utf-8", "surrogatepass") + b"\n"))
        yield name, number, tuple((key, pairs_of(value)) for key, value in row.items())


def _load(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"the hub data set {name} needs datasets, not installed here", extra="local") from error
    organisation, word, *split = name.split("/")
    try:
        return datasets.load_dataset(f"{organisation}/{word}", split=split[0] if split else "train")
    except (datasets.exceptions.DatasetNotFoundError, ValueError, RuntimeError) as error:
        if _is_offline(error):
            raise _unreachable(name, error) from error
        raise RequestError(
            f"there is no file {name!r} on this machine, and no such data set on the hub: {_first_line(error)}",
            field="train_data_path",
            hint="for a file write ./path; for a data set org/name or org/name/split",
        ) from error
    except OSError as error:
        raise _unreachable(name, error) from error


def _is_offline(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) or "offline" in str(error).lower() or "connect" in type(error).__name__.lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _unreachable(name: str, error: BaseException) -> Unavailable:
    return Unavailable(
        f"the hub can't be reached for the data set {name!r}: {_first_line(error)}",
        hint="download the file first and give its path, as in ./train.parquet",
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
