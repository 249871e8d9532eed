"""What a run store keeps of a run, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from fm.backends.base import RunFilter
from fm.errors import Conflict, NotFound, RequestError
from fm.lifecycle import EventType, Status
from fm.store.leases import LOG_CAP
from fm.store.store import RunStore
from fm.types import MetricRow, Principal
from support.stores import claim, create, happened, moment, new_run


def test_a_run_is_kept_as_it_was_made(store: RunStore) -> None:
    made = create(store, name="one", tags={"a": "ü\n\0" if store.url.startswith("sqlite") else "ü\n"})
    assert store.find("red", made.id) == made
    assert made.status is Status.QUEUED
    assert [event.type for event in store.events(made.id, 0, 10)] == [EventType.CREATED]


def test_a_key_makes_one_run_for_each_team(store: RunStore) -> None:
    first = create(store)
    assert create(store) == first
    other = store.create(new_run(), "k", Principal(user="bob", team="blue"))
    assert other.id != first.id
    with pytest.raises(NotFound):
        store.find("blue", first.id)


def test_creates_at_once_with_one_key_make_one_run(store: RunStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({run.id for run in pool.map(lambda _: create(store), range(24))}) == 1
    assert len(store.list("red", RunFilter())) == 1


def test_events_are_numbered_without_gaps_by_many_writers(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]

    def write(number: int) -> None:
        store.save(lease, new_events=[happened(EventType.WARNING, attempt=1, line=number)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(1, 41)))
    assert [event.seq for event in store.events(run.id, 0, 1000)] == list(range(1, 43))


def test_a_line_is_taken_in_once_however_often_it_comes(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]
    for _ in range(3):
        store.save(lease, new_events=[happened(EventType.WARNING, attempt=1, line=1)])
    assert [event.type for event in store.events(run.id, 2, 10)] == [EventType.WARNING]


def test_a_batch_is_taken_in_whole_or_not_at_all(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]
    bad = [happened(EventType.WARNING), happened(EventType.CLAIMED)]
    row = MetricRow(step=1, time=moment(), values={"loss": 1.0})
    with pytest.raises(Conflict):
        store.save(lease, work={"x": 1}, new_events=bad, new_metrics=[row], log="text")
    assert len(store.events(run.id, 0, 10)) == 2
    assert store.metrics(run.id, None, -1, 10) == []
    assert store.log(run.id, 0).text == ""
    assert store.work(lease) == {}


def test_metrics_are_paged_by_step_and_a_later_attempt_replaces_the_figures(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]
    rows = [MetricRow(step=n, time=moment(), values={"loss": 1.0 * n, "lr": 0.1}) for n in range(10)]
    store.save(lease, new_metrics=rows)
    store.save(lease, new_metrics=[MetricRow(step=3, time=moment(), values={"loss": 33.0, "eval": 2.0})])
    assert store.metrics(run.id, None, 2, 1)[0].values == {"loss": 33.0, "lr": 0.1, "eval": 2.0}
    assert [row.step for row in store.metrics(run.id, ["loss"], 4, 3)] == [5, 6, 7]
    assert [row.values for row in store.metrics(run.id, ["eval"], -1, 100)] == [{"eval": 2.0}]


def test_the_log_is_read_by_cursor_and_capped(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]
    store.save(lease, log="one\n")
    store.save(lease, log="two\n")
    first = store.log(run.id, 0)
    assert first.text == "one\ntwo\n"
    for _ in range(3):
        store.save(lease, log="x" * (LOG_CAP // 2))
    rest = store.log(run.id, first.next_offset).text
    assert len(rest) < LOG_CAP + 200 and "log cut" in rest


def test_a_beginning_that_several_ids_share_is_a_conflict(store: RunStore) -> None:
    ids = [create(store, key=str(number)).id for number in range(40)]
    beginning = next(i[:5] for i in ids if sum(other.startswith(i[:5]) for other in ids) > 1)
    with pytest.raises(Conflict):
        store.find("red", beginning)


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_a_value_that_the_store_can_not_hold_is_no_outage(store: RunStore) -> None:
    with pytest.raises(RequestError):
        store.find("red", "a\0b")
