"""Rows out of files: none is lost in silence, and what can't be read is named."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm.data import Row, blocks, locate, readers
from fm.errors import DataFault
from support.data import write_jsonl

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(path: Path) -> list[Any]:
    return list(locate(str(path), field="x").rows())


def fault_of(path: Path) -> DataFault:
    faults = [row for row in rows_of(path) if isinstance(row, DataFault)]
    assert len(faults) == 1, faults
    return faults[0]


@QUICK
@given(values=st.lists(st.dictionaries(st.text(), ANY_JSON, max_size=4), min_size=1, max_size=6), indent=st.booleans())
def test_json_lines_and_arrays_give_back_what_was_written(tmp_path: Path, values: list[Any], indent: bool) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", values)
    array = tmp_path / "b.json"
    array.write_text(json.dumps(values, indent=2 if indent else None, ensure_ascii=indent))
    expected = list(enumerate(values, start=1))
    assert [(row.line, row.value) for row in rows_of(lines)] == expected
    assert [(row.line, row.value) for row in rows_of(array)] == expected


@QUICK
@given(content=st.binary(min_size=1, max_size=300), suffix=st.sampled_from([".jsonl", ".json", ".csv", ".txt"]))
def test_no_bytes_whatever_make_a_reader_crash(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert all(isinstance(row, Row | DataFault) for row in rows_of(path))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_a_json_array_is_read_alike_wherever_its_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    values = [{"prompt": "é✓\\", "response": '"],['}, {"n": [1.5e3, -12, {}]}, {}]
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf \n" + json.dumps(values, ensure_ascii=False).encode() + b"\n")
    assert [row.value for row in rows_of(path)] == values


def test_a_json_array_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[")
        file.writelines(json.dumps({"text": "x" * 1000, "n": n}) + ",\n" for n in range(20_000))
        file.write("{}]")
    source = locate(str(path), field="x")
    tracemalloc.start()
    assert sum(1 for _ in source.rows()) == 20_001
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at position 8"),
        (b'{"a": "b\0c"}', "not JSON at column 9"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"a": 1} {"b": 2}', "more text after the value"),
        (b"9" * 5000, "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"nonsense", "not JSON"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(tmp_path: Path, line: bytes, problem: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["{}", line, "{}"])
    fault = fault_of(path)
    assert (fault.file, fault.line) == ("a.jsonl", 2)
    assert problem in fault.problem and fault.remedy
    assert [row.line for row in rows_of(path) if isinstance(row, Row)] == [1, 3]


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "12')
    assert "where the file ends" in fault_of(tmp_path / "a.jsonl").problem
    (tmp_path / "b.json").write_text('[{"a": 1}, {"a": 2}')
    assert "ends inside the array" in fault_of(tmp_path / "b.json").problem


def test_a_line_beyond_the_limit_is_named_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROW_LIMIT", 1 << 20)
    path = write_jsonl(tmp_path / "a.jsonl", ["{}", b'{"a": "' + b"x" * (5 << 20) + b'"}', "{}"])
    fault = fault_of(path)
    assert fault.line == 2 and "more than 1 MB" in fault.problem
    assert [row.line for row in rows_of(path) if isinstance(row, Row)] == [1, 3]


def test_an_array_element_that_never_ends_is_an_error_and_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROW_LIMIT", 1 << 20)
    (tmp_path / "a.json").write_text('[{}, {"a": "' + "x" * (8 << 20))
    fault = fault_of(tmp_path / "a.json")
    assert fault.line == 2 and "never ends" in fault.problem


def test_a_byte_order_mark_is_passed_over_and_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert [row.value for row in rows_of(tmp_path / "a.jsonl")] == [{"a": 1}]
    (tmp_path / "b.jsonl").write_bytes('{"a": 1}\n'.encode("utf-16"))
    assert "UTF-16" in fault_of(tmp_path / "b.jsonl").problem


def test_csv_keeps_line_ends_and_commas_in_quotes_and_counts_rows(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "response"], ["a,\nb", 'say "x"'], ["c", "d" * 200_000]])
    rows = rows_of(tmp_path / "a.csv")
    assert [(row.line, row.value["prompt"]) for row in rows] == [(1, "a,\nb"), (2, "c")]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("prompt,response\na\n", 1, "1 fields, where the header has 2"),
        ('prompt,response\na,b\n"c,d', 2, "not CSV"),
        ("prompt,prompt\na,b\n", None, "repeated name"),
        ("prompt,response\na,\0\n", 2, "NUL"),
        ("messages\nnonsense\n", 1, "not JSON"),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path: Path, text: str, line: int | None, problem: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    fault = fault_of(tmp_path / "a.csv")
    assert fault.line == line and problem in fault.problem


def test_parquet_gives_text_columns_and_lists_of_structs(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    messages = [[{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "n"}]]
    pq.write_table(pa.table({"messages": messages}), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet")[0].value == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "n"}]
    }
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    assert "not Parquet" in fault_of(tmp_path / "b.parquet").problem


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\r\nthree")
    assert [row.value for row in rows_of(tmp_path / "a.txt")] == ["one\n\ntwo\r\nthree"]


def test_a_large_text_file_is_split_at_blank_lines_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "TEXT_PIECE", 100)
    text = "".join(f"paragraph {n}\nits second line\n\n" for n in range(50)) + "line without a blank one\n" * 40
    (tmp_path / "a.txt").write_text(text)
    rows = rows_of(tmp_path / "a.txt")
    assert "".join(row.value for row in rows) == text
    assert all(len(row.value) < 300 for row in rows) and rows[0].value.endswith("\n\n")
    lines = text.splitlines(keepends=True)
    assert all(row.value.startswith(lines[row.line - 1]) for row in rows)
