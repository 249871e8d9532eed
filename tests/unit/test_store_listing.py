"""Pages of runs: each condition, alone and with others, in one order."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from fm.backends.base import RunFilter
from fm.errors import NotFound
from fm.lifecycle import EventType, Status
from fm.store.schema import runs
from fm.store.store import RunStore
from fm.types import Principal
from support.stores import happened, new_run

NAMES = ("a-1", "a-2", "b_1", "bx1", "A-3", "a-4", "a-21")


@pytest.fixture
def made(store: RunStore) -> list[str]:
    """Ids of runs with `NAMES`, the newest first: every second one is Bob's, every third one is STOPPED."""
    ids = []
    for number, name in enumerate(NAMES):
        who = Principal(user=("ada", "bob")[number % 2])
        run = store.create(new_run(name=name), name, who)
        if number % 3 == 0:
            store.cancel(who, run.id, happened(EventType.CANCEL_REQUESTED))
        ids.append(run.id)
    with store.database.write() as connection:
        for number, run_id in enumerate(ids):
            # Two at a time are of one moment, and then in the order of their ids.
            connection.execute(update(runs).where(runs.c.id == run_id).values(created_at=float(number // 2)))
    return sorted(ids, key=lambda run_id: (ids.index(run_id) // 2, run_id), reverse=True)


def pages(store: RunStore, limit: int, **conditions: object) -> list[str]:
    """The ids of all that fit, read page by page."""
    seen: list[str] = []
    while True:
        wanted = RunFilter(limit=limit, cursor=seen[-1] if seen else None, **conditions)  # type: ignore[arg-type]
        page = [run.id for run in store.list("local", wanted)]
        assert len(page) <= limit
        if not page:
            return seen
        seen += page


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"statuses": frozenset({Status.QUEUED})},
        {"statuses": frozenset({Status.QUEUED, Status.STOPPED, Status.FAILED})},
        {"owners": frozenset({"bob"})},
        {"statuses": frozenset({Status.STOPPED}), "owners": frozenset({"ada", "bob"})},
        {"name": "*"},
        {"name": "a-*", "statuses": frozenset({Status.QUEUED, Status.STOPPED})},
    ],
)
def test_pages_join_into_the_whole_list_under_every_condition(
    store: RunStore, made: list[str], limit: int, conditions: dict[str, object]
) -> None:
    records = {run.id: run for run in store.list("local", RunFilter())}
    assert list(records) == made
    fitting = [
        run.id
        for run in records.values()
        if run.status in conditions.get("statuses", frozenset(Status))
        and run.owner in conditions.get("owners", ("ada", "bob"))
        and (conditions.get("name", "*") == "*" or run.name.startswith("a-"))
    ]
    assert pages(store, limit, **conditions) == fitting


@pytest.mark.parametrize(
    ("glob", "fitting"),
    [
        ("a-?", {"a-1", "a-2", "a-4"}), ("a-*", {"a-1", "a-2", "a-4", "a-21"}), ("?-[1-3]", {"a-1", "a-2", "A-3"}),
        ("[!a]*", {"b_1", "bx1", "A-3"}), ("b_1", {"b_1"}), ("a%", set()), ("*1", {"a-1", "b_1", "bx1", "a-21"}),
        ("a-2*", {"a-2", "a-21"}), ("A-*", {"A-3"}), ("", set(NAMES)), ("run-", set(NAMES)), ("\\*", set()),
    ],
)
@pytest.mark.usefixtures("made")
def test_a_glob_finds_the_names_that_fit_and_no_others(store: RunStore, glob: str, fitting: set[str]) -> None:
    assert {run.name for run in store.list("local", RunFilter(name=glob))} == fitting


def test_a_cursor_that_is_no_run_of_the_team_is_not_found(store: RunStore, made: list[str]) -> None:
    with pytest.raises(NotFound):
        store.list("others", RunFilter(cursor=made[0]))
