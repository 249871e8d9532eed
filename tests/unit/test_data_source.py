"""What a data path means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fm.data import locate
from fm.errors import RequestError, Unsupported
from support.data import chat, write_jsonl


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_file_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "train.jsonl", [chat("a", "b")])
    source = locate("train.jsonl", field="train_data_path")
    monkeypatch.chdir("/")
    assert locate(source.path, field="train_data_path") == source


def test_a_path_that_exists_is_local_even_if_it_looks_like_a_hub_name(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    write_jsonl(tmp_path / "org" / "name.jsonl", [chat("a", "b")])
    assert not locate("org", field="x").is_hub
    (tmp_path / "org" / "name").mkdir()
    write_jsonl(tmp_path / "org" / "name" / "a.jsonl", [chat("a", "b")])
    assert not locate("org/name", field="x").is_hub


def test_a_hub_name_that_does_not_exist_here_is_a_hub_data_set() -> None:
    assert locate("org/name", field="x").is_hub
    assert locate("org/name/train", field="x").is_hub


@pytest.mark.parametrize(
    "path", ["./train", "../org/name", "/org/name", "~/name", "org/train.jsonl", "org/x.parquet", "one"]
)
def test_a_missing_local_path_is_never_taken_for_a_hub_data_set(path: str) -> None:
    with pytest.raises(RequestError, match="there is no file") as caught:
        locate(path, field="eval_data_path")
    assert caught.value.field == "eval_data_path"


@pytest.mark.parametrize(
    "path", ["dbfs:/data/x.jsonl", "s3://bucket/x.parquet", "/Volumes/a/b/c.jsonl", "main.sales.rows"]
)
def test_what_lies_elsewhere_is_refused_with_a_way_to_bring_it_here(path: str) -> None:
    with pytest.raises(Unsupported) as caught:
        locate(path, field="train_data_path")
    assert "copy" in caught.value.hint or "export" in caught.value.hint


def test_a_file_named_like_a_table_is_a_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.b.jsonl", [chat("a", "b")])
    assert not locate("a.b.jsonl", field="x").is_hub


def test_a_folder_gives_its_files_sorted_and_passes_over_hidden_ones(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("b.jsonl", "a.jsonl", ".hidden", "_SUCCESS"):
        write_jsonl(folder / name, [chat(name, "x")])
    assert [path.name for path in locate("./rows", field="x").files] == ["a.jsonl", "b.jsonl"]


def test_a_folder_of_several_kinds_is_refused_naming_them(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("b.jsonl", "a.csv", "README.md"):
        write_jsonl(folder / name, ["x"])
    with pytest.raises(RequestError, match=r"README.md, a.csv, b.jsonl"):
        locate("rows", field="x")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "without data files"),
        (lambda path: path.symlink_to("nowhere"), "broken link"),
        (lambda path: os.mkfifo(path), "no regular file"),
    ],
)
def test_a_path_without_data_says_so(tmp_path: Path, make: object, problem: str) -> None:
    make(tmp_path / "data.jsonl")  # type: ignore[operator]
    with pytest.raises(RequestError, match=problem):
        locate("data.jsonl", field="x")


def test_a_file_of_an_unknown_kind_is_refused_naming_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(RequestError, match="unknown kind") as caught:
        locate("rows.xlsx", field="x")
    assert ".jsonl" in caught.value.hint


@pytest.mark.parametrize("path", ["", " ", "a\0b", "x" * 5000])
def test_a_path_that_can_name_nothing_is_an_error_and_no_crash(path: str) -> None:
    with pytest.raises(RequestError):
        locate(path, field="x")
