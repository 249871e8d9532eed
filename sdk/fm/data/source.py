"""What `train_data_path` and `eval_data_path` mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fm.data import hub
from fm.data.readers import READERS
from fm.data.rules import plain
from fm.errors import DataFault, RequestError, Unavailable, Unsupported

SUFFIXES = tuple(READERS)
_KINDS = ", ".join(SUFFIXES)
_TABLE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class Row(NamedTuple):
    """One row. `line` counts from 1; `value` is a dict, a document's text, or whatever stood on the line."""

    file: str
    line: int
    value: Any


class Meter(Protocol):
    """Sees every byte of a source, in order, while its rows are read."""

    def begin(self, name: str, size: int) -> None:
        """The bytes that follow are those of the file `name`."""

    def feed(self, block: memoryview) -> object: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from. `path` finds the same source again from any working folder.

    `files` are read in order; a hub data set has none.
    """

    path: str
    name: str
    suffix: str = ""
    files: tuple[Path, ...] = ()

    @property
    def is_hub(self) -> bool:
        return not self.files

    @property
    def bytes(self) -> int:
        """Size of all files; 0 for a hub data set."""
        return sum(file.stat().st_size for file in self.files)

    def rows(self) -> Iterator[Row | DataFault]:
        """All rows in order; a `DataFault` stands in the place of what can't be read."""
        for item in self.raw():
            if isinstance(item, DataFault):
                yield item
                continue
            file, line, value = item
            try:
                yield Row(file, line, plain(value))
            except RecursionError:
                yield DataFault(file, line, "", "nested too deeply", "flatten the value")

    def raw(self, meter: Meter | None = None) -> Iterator[tuple[str, int, Any] | DataFault]:
        """All rows as ``(file, line, value)``, objects as pairs; `meter` sees their bytes.

        Raises:
            Unavailable: a file can't be read, or the hub can't be reached.
        """
        if self.is_hub:
            yield from hub.rows(self.path, meter)
            return
        read = READERS[self.suffix]
        for path in self.files:
            try:
                if meter:
                    meter.begin(path.name, path.stat().st_size)
                    if self.suffix == ".parquet":
                        feed_file(path, meter)
                name = path.name
                for item in read(path, name, meter.feed if meter else None):
                    yield item if isinstance(item, DataFault) else (name, *item)
            except OSError as error:
                raise Unavailable(f"can't read {path}: {error.strerror}", hint="check the file and its mode") from error


def feed_file(path: Path, meter: Meter) -> None:
    """Shows all bytes of the file to `meter`."""
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            meter.feed(memoryview(block))


def locate(path: str, *, field: str) -> Source:
    """Says what `path` means: a file, a folder of files of one kind, or a hub data set ``org/name[/split]``.

    What exists on this machine is always local, and so is anything that starts with ``./``, ``/`` or ``~`` or ends in a
    known suffix. Nothing is read yet, and the hub is not asked. `field` is the parameter's name, for errors.

    Raises:
        RequestError: there is nothing there, or nothing that can be read as data.
        Unsupported: it lies where ftctl does not reach; the hint says how to bring it here.
    """
    text = str(path).strip()
    if not text or "\0" in text:
        raise RequestError(f"{field} {text!r} names nothing", field=field, hint=f"give one of {_KINDS}")
    local = Path(text).expanduser()
    try:
        if local.is_dir():
            return _folder(text, local.absolute(), field)
        if local.is_file():
            return _file(text, local.absolute(), field)
        there = local.exists() or local.is_symlink()
    except (OSError, ValueError) as error:
        problem = f"{field} {text!r} can't be looked at: {error}"
        raise RequestError(problem, field=field, hint="check the path") from error
    if there:
        problem = f"{field} {text!r} is no regular file, or a broken link"
        raise RequestError(problem, field=field, hint=f"give one of {_KINDS}")
    _refuse_elsewhere(text, field)
    if text.startswith((".", "/", "~")) or local.suffix.lower() in SUFFIXES or not hub.NAME.fullmatch(text):
        hint = f"looked for {local.absolute()}; give a {_KINDS} file, a folder of them, or a hub data set org/name"
        raise RequestError(f"{field}: there is no file {text!r}", field=field, hint=hint)
    return Source(path=text, name=text)


def _refuse_elsewhere(text: str, field: str) -> None:
    if scheme := _REMOTE.match(text):
        raise Unsupported(
            f"{field} {text!r}: {scheme[1]}: paths are not read from here",
            field=field,
            hint="copy the file to this machine and give its path (Databricks: `databricks fs cp -r <path> ./data`)",
        )
    if text.startswith(("/Volumes/", "/dbfs/")):
        raise Unsupported(
            f"{field} {text!r} lies in a Databricks volume, which is not mounted here",
            field=field,
            hint="copy it with `databricks fs cp -r dbfs:<path> ./data` and give ./data/…",
        )
    if _TABLE.fullmatch(text) and Path(text).suffix.lower() not in SUFFIXES:
        raise Unsupported(
            f"{field} {text!r} looks like a table catalog.schema.table, which is not read from here",
            field=field,
            hint="export it first: spark.table(…).toPandas().to_parquet('train.parquet'), then give that file",
        )


def _file(text: str, path: Path, field: str) -> Source:
    if path.suffix.lower() not in SUFFIXES:
        kind = path.suffix or "no suffix"
        problem = f"{field} {text!r} is of an unknown kind ({kind})"
        raise RequestError(problem, field=field, hint=f"give one of {_KINDS}")
    if path.stat().st_size == 0:
        raise RequestError(f"{field} {text!r} is empty", field=field, hint="write at least one row")
    return Source(str(path), path.name, path.suffix.lower(), (path,))


def _folder(text: str, folder: Path, field: str) -> Source:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "_")))
    suffixes = {entry.suffix.lower() if entry.is_file() else "folder" for entry in entries}
    if not entries or not suffixes & set(SUFFIXES):
        problem = f"{field} {text!r} is a folder without data files"
        raise RequestError(problem, field=field, hint=f"it may hold {_KINDS}")
    if len(suffixes) > 1:
        kinds = {entry.suffix.lower() if entry.is_file() else "folder": entry.name for entry in reversed(entries)}
        examples = ", ".join(sorted(kinds.values()))
        raise RequestError(
            f"{field} {text!r} holds several kinds of files: {examples}",
            field=field,
            hint="keep data files of one kind in it and nothing else; names starting with . or _ are passed over",
        )
    if not sum(entry.stat().st_size for entry in entries):
        raise RequestError(f"{field} {text!r} holds empty files only", field=field, hint="write at least one row")
    return Source(str(folder), folder.name, suffixes.pop(), tuple(entries))
