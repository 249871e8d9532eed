"""Errors over HTTP: each arrives as what it was."""

from __future__ import annotations

import json

import pytest

from fm import wire
from fm.errors import (
    DataChanged,
    DataError,
    DataFault,
    FMError,
    MissingExtra,
    NotFound,
    RequestError,
    Unavailable,
    Unsupported,
)


def tree(root: type[FMError] = FMError) -> list[type[FMError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]


def sent(error: FMError) -> FMError:
    """`error`, as it arrives at the other side."""
    return wire.error_of(wire.Problem.model_validate_json(wire.problem_of(error, "r-1").model_dump_json()))


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_the_same_class_with_message_and_hint(kind: type[FMError]) -> None:
    error = kind("what happened", extra="local") if kind is MissingExtra else kind("what happened")
    error.hint = "what to do"
    arrived = sent(error)
    assert type(arrived) is kind and str(arrived) == str(error) and arrived.request_id == "r-1"
    assert arrived.retryable == error.retryable


def test_what_an_error_carries_arrives_too() -> None:
    arrived = sent(Unsupported("no", field="model", hint="h"))
    assert isinstance(arrived, RequestError) and arrived.field == "model"
    fault = DataFault("chats.jsonl", 7, "messages[2].role", "'bot' is no role", "write assistant")
    data = sent(DataChanged("1 row is wrong", faults=[fault], more=True))
    assert isinstance(data, DataError) and (data.faults, data.more) == ((fault,), True)
    missing = sent(MissingExtra("needs torch", extra="local"))
    assert isinstance(missing, MissingExtra) and missing.extra == "local"


def test_codes_are_distinct_and_stay() -> None:
    codes = {wire.code_of(kind): kind.__name__ for kind in tree()}
    assert len(codes) == len(tree())
    assert {"request_error", "data_error", "not_found", "conflict", "unauthorised", "forbidden"} <= set(codes)


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (409, FMError), (418, RequestError), (599, Unavailable)])
def test_an_error_of_a_newer_server_is_of_the_class_that_its_status_stands_for(
    status: int, kind: type[FMError]
) -> None:
    problem = {"title": "x", "status": status, "code": "of_tomorrow", "detail": "d", "fields": {"new": 1}, "n": 2}
    arrived = wire.error_of(wire.Problem.model_validate_json(json.dumps(problem)))
    assert isinstance(arrived, kind) and arrived.message == "d" and not hasattr(arrived, "new")
