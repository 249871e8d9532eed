"""One pass over the data: what is accepted, what is named, and the digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.data import Chat, Instruction, check, digest, locate, read_examples, verify
from fm.data.readers import pairs_of
from fm.data.rules import find_faults, fits
from fm.errors import DataChanged, DataError
from fm.request import TaskType
from support.data import chat, many_chats, write_jsonl

CHAT, INSTRUCTION, TEXT = TaskType.CHAT_COMPLETION, TaskType.INSTRUCTION_FINETUNE, TaskType.CONTINUED_PRETRAIN


def source_of(path: Path) -> Any:
    return locate(str(path), field="train_data_path")


def checked(tmp_path: Path, row: Any, task_type: TaskType = CHAT) -> list[str]:
    """The fields of the faults of `row`; a good one stands before it, so that it isn't taken for another type."""
    good = {CHAT: chat("a", "b"), INSTRUCTION: {"prompt": "a", "response": "b"}, TEXT: {"text": "a"}}[task_type]
    try:
        check(source_of(write_jsonl(tmp_path / "a.jsonl", [good, row])), task_type)
    except DataError as error:
        assert all(fault.line == 2 and fault.remedy for fault in error.faults)
        return [fault.field for fault in error.faults]
    return []


TOOL_TURNS = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "1", "tool_call_id": "x"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "b"},
    ],
    "tools": [{"type": "function"}],
}


@pytest.mark.parametrize(
    ("task_type", "row"),
    [
        (CHAT, chat("a", "b", "c", "d", system="s")),
        (CHAT, {"messages": [{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}]}),
        (CHAT, TOOL_TURNS),
        (INSTRUCTION, {"prompt": "a", "completion": "b"}),
        (INSTRUCTION, {"response": "b", "prompt": "a"}),
        (TEXT, {"text": "a"}),
    ],
)
def test_rows_of_each_type_are_accepted(tmp_path: Path, task_type: TaskType, row: Any) -> None:
    assert checked(tmp_path, row, task_type) == []


def message(role: Any, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, ASSISTANT = message("user"), message("assistant")


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([], ["messages"]),
        ("text", ["messages"]),
        (None, ["messages"]),
        ([USER], ["messages"]),
        ([USER, ASSISTANT, USER], ["messages"]),
        ([ASSISTANT], ["messages[0].role"]),
        ([USER, USER, ASSISTANT], ["messages[1].role"]),
        ([USER, message("system"), ASSISTANT], ["messages[1].role"]),
        ([USER, message("tool"), ASSISTANT], ["messages[1].role"]),
        ([message("User"), ASSISTANT], ["messages[0].role"]),
        ([message([]), ASSISTANT], ["messages[0].role"]),
        ([USER, message("assistant", "")], ["messages[1].content"]),
        ([USER, message("assistant", " \n")], ["messages[1].content"]),
        ([USER, message("assistant", None)], ["messages[1].content"]),
        ([USER, message("assistant", [{"type": "text"}])], ["messages[1].content"]),
        ([USER, {"role": "assistant"}], ["messages[1].content"]),
        ([USER, "x", ASSISTANT], ["messages[1]"]),
        ([["role", "user"], ASSISTANT], ["messages[0]"]),
        ([USER, message("assistant", "x", weight=1)], ["messages[1].weight"]),
        ([message("user", "x", tool_calls=[{}]), ASSISTANT], ["messages[0].tool_calls"]),
        ([message("user", 7), message("tool", "")], ["messages[0].content", "messages[1].content", "messages[1].role"]),
    ],
)
def test_each_fault_of_a_chat_is_named_by_its_field(tmp_path: Path, messages: Any, fields: list[str]) -> None:
    assert checked(tmp_path, {"messages": messages})[: len(fields)] == fields


@pytest.mark.parametrize(
    ("task_type", "row", "field"),
    [
        (CHAT, {"messages": chat("a", "b")["messages"], "id": 1}, "id"),
        (CHAT, '{"messages": [], "messages": []}', "messages"),
        (CHAT, '{"messages": [{"role": "user", "role": "user", "content": "a"}]}', "messages[0].role"),
        (CHAT, '{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content"),
        (CHAT, 7, ""),
        (CHAT, {"messages": chat("a", "b")["messages"], "tools": {}}, "tools"),
        (INSTRUCTION, {"prompt": "a"}, "response"),
        (INSTRUCTION, {"prompt": "", "response": "b"}, "prompt"),
        (INSTRUCTION, {"prompt": "a", "response": "b", "completion": "c"}, "completion"),
        (TEXT, {"text": 1}, "text"),
        (TEXT, {"body": "x"}, "body"),
    ],
)
def test_other_faults_are_named_by_their_field(tmp_path: Path, task_type: TaskType, row: Any, field: str) -> None:
    assert checked(tmp_path, row, task_type)[0] == field


def test_nesting_that_parses_but_is_too_deep_to_walk_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    tools = "[" * 900 + "]" * 900
    row = json.dumps(chat("a", "b"))[:-1] + f', "tools": [{{"x": {tools}}}]}}'
    assert checked(tmp_path, row) in ([""], [])


def test_line_4212_of_many_is_named(tmp_path: Path) -> None:
    path = many_chats(tmp_path / "train.jsonl", 5000)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4211] = b'{"messages": [}\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"train.jsonl:4212: not JSON at column 15"):
        check(source_of(path), CHAT)


def test_reading_stops_after_twenty_faults(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b"), *["{"] * 30])
    with pytest.raises(DataError, match="at least 20 rows are wrong") as caught:
        check(source_of(path), CHAT)
    assert len(caught.value.faults) == 20 and caught.value.more


@pytest.mark.parametrize(
    ("row", "looks_like"),
    [(chat("a", "b"), CHAT), ({"prompt": "a", "completion": "b"}, INSTRUCTION), ({"text": "a"}, TEXT)],
)
def test_rows_of_another_type_give_one_error_that_names_it(tmp_path: Path, row: Any, looks_like: TaskType) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row] * 30)
    for task_type in set(TaskType) - {looks_like}:
        with pytest.raises(DataError, match=f"look like {looks_like.value}") as caught:
            check(source_of(path), task_type)
        assert not caught.value.faults and looks_like.value in caught.value.hint


def test_trap_34_preferences_are_refused_since_nothing_here_trains_on_them(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write_jsonl(tmp_path / "a.jsonl", [row] * 30)
    for task_type in TaskType:
        with pytest.raises(DataError, match="DPO") as caught:
            check(source_of(path), task_type)
        assert not caught.value.faults and "prompt and response" in caught.value.hint


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        check(source_of(write_jsonl(tmp_path / "a.jsonl", ["", " "])), CHAT)


@settings(max_examples=300, deadline=None)
@given(
    row=st.recursive(
        st.none() | st.integers() | st.sampled_from(["", "user", "assistant", "system", "tool", "x", "é", "\ud800"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "prompt", "response", "text"]), inner, max_size=3
            )
            | st.builds(
                lambda a, b: chat(*a, system=b), st.lists(st.text(max_size=2), max_size=5), st.none() | st.text()
            )
        ),
        max_leaves=12,
    ),
    task_type=st.sampled_from(TaskType),
)
def test_what_is_accepted_at_a_glance_has_no_fault(row: Any, task_type: TaskType) -> None:
    value = pairs_of(row)
    if fits(value, task_type):
        assert not find_faults(value, task_type, "f", 1)


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=2, max_size=6
    ),
    system=st.none() | st.just("s"),
)
def test_every_plain_chat_is_accepted_at_a_glance(contents: list[str], system: str | None) -> None:
    row = chat(*contents[: len(contents) // 2 * 2], system=system)
    assert fits(pairs_of(row), CHAT) and not find_faults(pairs_of(row), CHAT, "f", 1)


def test_the_digest_of_a_check_is_that_of_the_bytes_alone(tmp_path: Path) -> None:
    path = many_chats(tmp_path / "a.jsonl", 100)
    ref = check(source_of(path), CHAT)
    assert (ref.rows, ref.bytes) == (100, path.stat().st_size)
    assert digest(source_of(path)) == ref.model_copy(update={"rows": None})


@pytest.mark.parametrize("change", ["byte", "name", "file", "order"])
def test_the_digest_changes_with_bytes_names_and_files(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    first, second = many_chats(folder / "a.jsonl", 10), many_chats(folder / "b.jsonl", 20)
    ref = check(source_of(folder), CHAT)
    verify(source_of(folder), ref)
    match change:
        case "byte":
            first.write_bytes(first.read_bytes().replace(b"9", b"8"))
        case "name":
            first.rename(folder / "aa.jsonl")
        case "file":
            many_chats(folder / "c.jsonl", 1)
        case "order":
            first.rename(folder / "c.jsonl")
            second.rename(folder / "a.jsonl")
            (folder / "c.jsonl").rename(folder / "b.jsonl")
    with pytest.raises(DataChanged):
        verify(source_of(folder), ref)
    with pytest.raises(DataChanged):
        list(read_examples(source_of(folder), CHAT, recorded=ref))


def test_the_same_files_elsewhere_have_the_same_digest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        many_chats(tmp_path / name / "a.jsonl", 10)
    assert (
        digest(source_of(tmp_path / "one" / "a.jsonl")).digest == digest(source_of(tmp_path / "two" / "a.jsonl")).digest
    )


def test_progress_counts_bytes_up_to_all_of_them(tmp_path: Path) -> None:
    path = many_chats(tmp_path / "a.jsonl", 30_000)
    told: list[tuple[int, int]] = []
    check(source_of(path), CHAT, progress=lambda done, total: told.append((done, total)))
    assert len(told) > 1 and told == sorted(told) and told[-1] == (path.stat().st_size, path.stat().st_size)


def test_examples_are_normalised(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [TOOL_TURNS])
    [(_, _, example)] = read_examples(source_of(path), CHAT)
    assert isinstance(example, Chat) and example.tools == TOOL_TURNS["tools"]
    assert example.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    assert [example for _, _, example in read_examples(source_of(path), INSTRUCTION)] == [Instruction("a", "b")]


def test_reading_examples_of_wrong_rows_raises_and_does_not_skip(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [chat("a", "b"), "{", chat("a", "b")])
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        list(read_examples(source_of(path), CHAT))
