"""What a row must look like, by task type. The rules are those of `docs/data.md`.

`fits` accepts the usual row at a glance; a row that it does not accept goes through `find_faults`, which is the
whole definition and says what is wrong. Values are pairs, as `fm.data.readers` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fm.errors import DataFault
from fm.request import TaskType


class Chat(NamedTuple):
    """A conversation. `messages` are dicts with `role` and `content` (always text)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


class Instruction(NamedTuple):
    """A prompt and the response to learn."""

    prompt: str
    response: str

    @property
    def characters(self) -> int:
        return len(self.prompt) + len(self.response)


class Text(NamedTuple):
    """A document."""

    text: str

    @property
    def characters(self) -> int:
        return len(self.text)


Example = Chat | Instruction | Text

_MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id"}
_ROLES = ("system", "user", "assistant", "tool")
_NEXT = {"system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
_SHAPES = {
    TaskType.CHAT_COMPLETION: '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    TaskType.INSTRUCTION_FINETUNE: '{"prompt": "…", "response": "…"}',
    TaskType.CONTINUED_PRETRAIN: '{"text": "…"}',
}


def recognise(value: Any) -> TaskType | None:
    """The task type that the row is made for, by its keys; None if it can't be told."""
    if isinstance(value, str):
        return TaskType.CONTINUED_PRETRAIN
    if not isinstance(value, tuple):
        return None
    keys = {key for key, _ in value}
    if "messages" in keys:
        return TaskType.CHAT_COMPLETION
    if keys >= {"prompt", "response"} or keys >= {"prompt", "completion"}:
        return TaskType.INSTRUCTION_FINETUNE
    return TaskType.CONTINUED_PRETRAIN if keys == {"text"} else None


def fits(value: Any, task_type: TaskType) -> bool:
    """Whether the row is right at a glance. False says nothing: ask `find_faults`."""
    if task_type is TaskType.CHAT_COMPLETION:
        return _is_plain_chat(value)
    if type(value) is str:
        return task_type is TaskType.CONTINUED_PRETRAIN and _is_text(value)
    if type(value) is not tuple:
        return False
    if task_type is TaskType.CONTINUED_PRETRAIN:
        return len(value) == 1 and value[0][0] == "text" and _is_text(value[0][1])
    if len(value) != 2:
        return False
    (first, prompt), (second, response) = value
    return (
        first == "prompt" and second in ("response", "completion") and _is_text(prompt) and _is_text(response)
    )


def _is_plain_chat(value: Any) -> bool:
    """A system message or none, then user and assistant by turns; each message just role and content, in that order."""
    if type(value) is not tuple or len(value) != 1:
        return False
    key, messages = value[0]
    if key != "messages" or type(messages) is not list:
        return False
    expected = "user"
    for index, message in enumerate(messages):
        if type(message) is not tuple or len(message) != 2:
            return False
        (first, role), (second, content) = message
        if first != "role" or second != "content" or type(content) is not str:
            return False
        if not content or content.isspace() or not (content.isascii() or _encodable(content)):
            return False
        if role == expected:
            expected = "assistant" if role == "user" else "user"
        elif index or role != "system":
            return False
    # The last was an assistant: a user is expected, and there were at least two turns.
    return expected == "user" and len(messages) > 1


def _is_text(value: Any) -> bool:
    return type(value) is str and bool(value) and not value.isspace() and (value.isascii() or _encodable(value))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_faults(value: Any, task_type: TaskType, file: str, line: int | None) -> list[DataFault]:
    """All that is wrong with a row; empty if it is right."""
    try:
        plain(value)
    except RecursionError:
        return [DataFault(file, line, "", "nested too deeply", "flatten the value")]
    return [DataFault(file, line, field, problem, remedy) for field, problem, remedy in _faults(value, task_type)]


_Fault = tuple[str, str, str]


def _faults(value: Any, task_type: TaskType) -> Iterator[_Fault]:
    shape = f"write {_SHAPES[task_type]}"
    if isinstance(value, str) and task_type is TaskType.CONTINUED_PRETRAIN:
        yield from _text_faults("", value)
        return
    other = recognise(value)
    if other not in (None, task_type):
        yield "", f"the row looks like {other.value}, not {task_type.value}", shape
        return
    if not isinstance(value, tuple):
        yield "", f"{_kind(value)} instead of an object", shape
        return
    yield from _repeated("", value)
    row = dict(value)
    match task_type:
        case TaskType.CHAT_COMPLETION:
            yield from _unexpected(row, {"messages", "tools"})
            if "messages" not in row:
                yield "messages", "missing", shape
            else:
                yield from _chat_faults(row["messages"])
            if "tools" in row and not (
                isinstance(row["tools"], list) and all(isinstance(tool, tuple) for tool in row["tools"])
            ):
                yield "tools", f"{_kind(row['tools'])} instead of a list of objects", "write a list of JSON schemas"
        case TaskType.INSTRUCTION_FINETUNE:
            answer = "completion" if "completion" in row and "response" not in row else "response"
            yield from _unexpected(row, {"prompt", answer})
            for key in ("prompt", answer):
                if key in row:
                    yield from _text_faults(key, row[key])
                else:
                    yield key, "missing", shape
        case TaskType.CONTINUED_PRETRAIN:
            yield from _unexpected(row, {"text"})
            if "text" in row:
                yield from _text_faults("text", row["text"])
            else:
                yield "text", "missing", shape


def _chat_faults(messages: Any) -> Iterator[_Fault]:
    if not isinstance(messages, list):
        yield "messages", f"{_kind(messages)} instead of a list", f"write {_SHAPES[TaskType.CHAT_COMPLETION]}"
        return
    before = None
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, tuple):
            yield where, f"{_kind(message)} instead of an object", 'write {"role": "…", "content": "…"}'
            before = None
            continue
        yield from _repeated(where, message)
        entry = dict(message)
        yield from _unexpected(entry, _MESSAGE_KEYS, where)
        yield from _content_faults(where, entry)
        role = entry.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            problem = "missing" if "role" not in entry else f"{role!r} is not a role"
            yield f"{where}.role", problem, f"use one of {', '.join(_ROLES)}"
        elif disorder := _order_fault(before, role, index):
            yield f"{where}.role", disorder, "a system message comes first, then user and assistant alternate"
        before = role
    if before in ("system", "user", "tool") or not messages:
        problem = f"the last message is of the role {before}" if messages else "empty"
        yield "messages", problem, "end with the assistant's answer, which is what is learnt"


def _order_fault(before: Any, role: str, index: int) -> str | None:
    """Why `role` can't follow the role `before`; None if it can, or if the one before is itself at fault."""
    if role == "system":
        return "a system message that is not the first" if index else None
    if index == 0:
        return None if role == "user" else f"the conversation starts with {role}"
    if not isinstance(before, str) or before not in _ROLES:
        return None
    return None if role in _NEXT[before] else f"{role} follows {before}"


def _content_faults(where: str, message: dict[str, Any]) -> Iterator[_Fault]:
    calls = message.get("tool_calls")
    if calls is not None and (message.get("role") != "assistant" or not isinstance(calls, list) or not calls):
        yield f"{where}.tool_calls", "not a list of an assistant's calls", "remove it, or write the calls as a list"
    elif calls and not message.get("content"):
        return
    if "content" not in message:
        yield f"{where}.content", "missing", "write the text of the message"
    else:
        yield from _text_faults(f"{where}.content", message["content"])


def _text_faults(field: str, value: Any) -> Iterator[_Fault]:
    if not isinstance(value, str):
        yield field, f"{_kind(value)} instead of text", "write one string"
    elif not value.strip():
        yield field, "empty", "write the text, or remove the row"
    elif not _encodable(value):
        yield field, "half a surrogate pair, which is no character", "write the character itself, in UTF-8"


def _repeated(where: str, pairs: tuple[tuple[str, Any], ...]) -> Iterator[_Fault]:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            yield f"{where}.{key}".lstrip("."), "the key occurs twice", "keep one of them"
        seen.add(key)


def _unexpected(row: dict[str, Any], allowed: set[str], where: str = "") -> Iterator[_Fault]:
    for key in row:
        if key not in allowed:
            known = ", ".join(sorted(allowed))
            yield f"{where}.{key[:80]}".lstrip("."), "an unexpected key", f"remove it; allowed: {known}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", tuple: "an object"}
    return names.get(type(value), type(value).__name__)


def example_of(value: Any, task_type: TaskType) -> Example:
    """The normalised value of a row that is right."""
    if isinstance(value, str):
        return Text(value)
    row = dict(value)
    if task_type is TaskType.CHAT_COMPLETION:
        messages = [dict(message) for message in row["messages"]]
        for message in messages:
            if len(message) > 2 or "tool_calls" in message:
                # Templates take a key that is null for one that is set.
                calls = plain(message.pop("tool_calls", None))
                for key in [key for key, item in message.items() if item is None]:
                    del message[key]
                message.setdefault("content", "")
                message |= {"tool_calls": calls} if calls else {}
        return Chat(messages, plain(row["tools"]) if row.get("tools") else None)
    if task_type is TaskType.INSTRUCTION_FINETUNE:
        return Instruction(row["prompt"], row["response"] if "response" in row else row["completion"])
    return Text(row["text"])


def plain(value: Any) -> Any:
    """`value` with pairs as dicts."""
    if isinstance(value, tuple):
        return {key: plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
