"""The leaves: durations, names and errors."""

from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fm.errors
from fm.duration import Duration, Unit
from fm.errors import DataError, DataFault, FMError, MissingExtra, RequestError, RunFailed
from fm.names import check_alias, check_model_name, check_run_name, new_run_id, new_run_name


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("3ep", 3, Unit.EPOCH),
        ("500ba", 500, Unit.BATCH),
        ("1_000_000tok", 1_000_000, Unit.TOKEN),
        (" 10 EP ", 10, Unit.EPOCH),
        ("45m", 2700, Unit.SECOND),
        ("2h", 7200, Unit.SECOND),
        ("1h30m", 5400, Unit.SECOND),
        ("90s", 90, Unit.SECOND),
    ],
)
def test_a_duration_is_a_number_with_a_unit(text: str, value: int, unit: Unit) -> None:
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    "text", ["", "3", "ep", "3 epochs", "-1ep", "0ep", "1.5ep", "m", "1e9ba", "0h0m", "٣ep", "9" * 30 + "ep"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RequestError) as error:
        Duration.parse(text)
    assert error.value.field == "training_duration"
    assert "45m" in error.value.hint


@pytest.mark.parametrize("value", [3, 2.5, None, b"3ep"])
def test_a_duration_without_its_unit_is_refused(value: object) -> None:
    with pytest.raises(RequestError):
        Duration.parse(value)  # type: ignore[arg-type]


@given(st.integers(1, 10**15), st.sampled_from(list(Unit)))
def test_a_duration_reads_back_what_it_writes(value: int, unit: Unit) -> None:
    assert Duration.parse(str(Duration(value, unit))) == Duration(value, unit)


@given(st.text(max_size=40))
def test_any_other_text_is_a_duration_or_a_request_error(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert Duration.parse(text).value >= 1


@pytest.mark.parametrize("name", ["a.b.c", "main.support.bot-2", "_x.y.z", "1.2.3"])
def test_three_words_name_a_model(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["a", "a.b", "a.b.c.d", "a..c", "../x.y.z", "a.b.c/..", "a.b.%2e", "a.b.c\0", "a.b.ü", "a.b. c", "a.b.c\n"],
)
def test_anything_else_does_not(name: str) -> None:
    with pytest.raises(RequestError):
        check_model_name(name)


@given(st.text(max_size=60))
def test_a_run_name_that_passes_stays_inside_its_folder(name: str) -> None:
    try:
        check_run_name(name)
    except RequestError:
        return
    assert "/" not in name and "\\" not in name and ".." not in name and "\0" not in name and name.strip() == name


def test_an_alias_is_never_taken_for_a_version() -> None:
    assert check_alias("prod") == "prod"
    for alias in ("3", "", "a/b", "a@b", "a.b"):
        with pytest.raises(RequestError):
            check_alias(alias)


def test_new_names_pass_their_own_check_whatever_the_model_is_called() -> None:
    for model in ("org/Model-7B", "./", "~/x y", "ü", "a" * 300, "fm/tiny-llama"):
        check_run_name(new_run_name(model))
    assert len({new_run_id() for _ in range(1000)}) == 1000


def _all_errors(root: type[FMError] = FMError) -> list[type[FMError]]:
    return [root, *(error for child in root.__subclasses__() for error in _all_errors(child))]


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_all_that_it_carries(kind: type[FMError]) -> None:
    error = kind("what happened", extra="local") if kind is MissingExtra else kind("what happened")
    error.hint = "what to do"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.__dict__ == error.__dict__ and str(again) == str(error)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = [line for line in (fm.errors.__doc__ or "").splitlines() if "──" in line]
    names = {line.split("── ")[1].split()[0] for line in drawn} | {"FMError"}
    assert names == {kind.__name__ for kind in _all_errors()}


def test_an_error_says_what_happened_where_and_what_to_do() -> None:
    fault = DataFault("chats.jsonl", 7, "messages[2].role", "'bot' is no role", "write assistant")
    text = str(DataError("1 row is wrong", faults=[fault], more=True))
    assert "chats.jsonl:7: messages[2].role: 'bot' is no role → write assistant" in text
    assert "there may be more" in text
    assert str(MissingExtra("needs torch", extra="local")).endswith("pip install 'ftctl[local]'")
    assert RunFailed("x", fault="user").fault == "user"
