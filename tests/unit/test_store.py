"""The run store, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fm.backends.base import RunFilter
from fm.clock import SimulatedClock
from fm.errors import Conflict, LeaseLost, MissingExtra, NotFound, RequestError, StoreError
from fm.lifecycle import EventType, Status
from fm.store.database import Database
from fm.store.leases import LEASE, LOG_CAP, Lease
from fm.store.store import RunStore
from fm.types import Event, MetricRow, ModelRef, ModelVersion, Principal, RunRecord
from support.stores import moment, new_run

WHO = Principal(user="ada", team="red")


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(moment())


@pytest.fixture
def store(store_url: str, clock: SimulatedClock) -> Iterator[RunStore]:
    store = RunStore(store_url, clock)
    yield store
    store.close()


def create(store: RunStore, key: str = "k", **request: object) -> RunRecord:
    return store.create(new_run(**request), key, WHO)


def claim(store: RunStore, agent: str = "agent-1", host: str = "host-1") -> tuple[RunRecord, Lease]:
    claimed = store.claim(agent, host, free=8, total=8)
    assert claimed is not None
    return claimed


def happened(kind: EventType, **values: object) -> Event:
    return Event.model_validate({"type": kind, "time": moment(), "message": kind.value, **values})


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


def test_the_run_that_waited_longest_is_claimed_first_and_once(store: RunStore, clock: SimulatedClock) -> None:
    ids = []
    for number in range(3):
        ids.append(create(store, key=str(number)).id)
        clock.sleep(1)
    assert [claim(store)[0].id for _ in range(3)] == ids
    assert store.claim("agent-2", "host-2", free=8, total=8) is None


def test_many_agents_claim_every_run_exactly_once(store: RunStore) -> None:
    ids = {create(store, key=str(number)).id for number in range(30)}
    claimed: list[str] = []
    lock = threading.Lock()

    def work(agent: int) -> None:
        while got := store.claim(f"agent-{agent}", f"host-{agent}", free=8, total=8):
            with lock:
                claimed.append(got[0].id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sorted(claimed) == sorted(ids)


def test_a_wide_run_waits_for_devices_and_is_not_overtaken(store: RunStore, clock: SimulatedClock) -> None:
    wide = create(store, key="1", num_processes=4)
    clock.sleep(1)
    create(store, key="2")
    assert store.claim("a", "h", free=2, total=4) is None
    assert claim(store)[0].id == wide.id


def test_a_run_too_wide_for_the_machine_is_left_to_a_larger_one_and_says_what_it_waits_for(
    store: RunStore, clock: SimulatedClock
) -> None:
    wide = create(store, key="1", num_processes=16)
    clock.sleep(1)
    narrow = create(store, key="2")
    assert claim(store)[0].id == narrow.id
    assert store.claim("small", "h", free=2, total=2) is None
    warnings = [event.message for event in store.events(wide.id, 0, 10) if event.type is EventType.WARNING]
    assert warnings == ["needs 16 devices, one for each process; host-1 has 8, and leaves it to a larger machine"]
    assert store.find("red", wide.id).reason == warnings[0]
    taken = store.claim("large", "h", free=16, total=16)
    assert taken and taken[0].id == wide.id and taken[0].reason == "taken by large"


def test_a_lease_that_ran_out_is_taken_over_and_its_old_holder_is_refused(
    store: RunStore, clock: SimulatedClock
) -> None:
    run, old = create(store), claim(store)[1]
    assert store.adopt("agent-2", "host-2") == []
    clock.sleep(LEASE.total_seconds() + 1)
    [(adopted, new)] = store.adopt("agent-2", "host-2")
    assert adopted.id == run.id and new.epoch > old.epoch
    for write in (lambda: store.renew(old), lambda: store.save(old, log="x"), lambda: store.work(old)):
        with pytest.raises(LeaseLost):
            write()
    with pytest.raises(LeaseLost):
        store.complete(old, happened(EventType.COMPLETED), None)
    assert store.log(run.id, 0).text == ""
    store.renew(new)


def test_a_lease_that_is_renewed_is_kept(store: RunStore, clock: SimulatedClock) -> None:
    create(store)
    lease = claim(store)[1]
    for _ in range(5):
        clock.sleep(LEASE.total_seconds() / 2)
        store.renew(lease)
        assert store.adopt("agent-2", "host-2") == []


def test_the_next_agent_in_a_place_takes_over_at_once(store: RunStore) -> None:
    create(store)
    claim(store, "agent-1", "here")
    assert len(store.adopt("agent-2", "here")) == 1


def test_a_retired_agent_lets_go_of_its_runs(store: RunStore) -> None:
    create(store)
    claim(store, "agent-1", "there")
    store.announce("agent-1", "there", 1, "0.1.0")
    store.retire("agent-1")
    assert store.agents() == []
    assert len(store.adopt("agent-2", "here")) == 1


def test_silent_agents_are_forgotten_and_drained_ones_told(store: RunStore, clock: SimulatedClock) -> None:
    assert store.announce("agent-1", "h", 1, "0.1.0") is False
    store.drain("agent-1")
    assert store.announce("agent-1", "h", 1, "0.1.0") is True
    clock.sleep(120)
    assert store.agents() == []


def test_a_requeued_run_is_not_claimed_before_its_time(store: RunStore, clock: SimulatedClock) -> None:
    create(store)
    lease = claim(store)[1]
    store.save(lease, new_events=[happened(EventType.REQUEUED)], not_before=moment(60))
    assert store.claim("a", "h", free=8, total=8) is None
    clock.sleep(61)
    assert claim(store)[0].status is Status.STARTING


def test_a_queued_run_is_cancelled_at_once_and_an_active_one_through_its_agent(store: RunStore) -> None:
    queued = create(store)
    assert store.cancel(WHO, queued.id, happened(EventType.CANCEL_REQUESTED)).status is Status.STOPPED
    active = create(store, key="2")
    claim(store)
    for _ in range(2):
        assert store.cancel(WHO, active.id, happened(EventType.CANCEL_REQUESTED)).status is Status.TERMINATING
    assert len(store.events(active.id, 2, 10)) == 1


def test_cancel_and_completion_at_once_end_the_run_once(store: RunStore) -> None:
    for number in range(10):
        run = create(store, key=str(number))
        lease = claim(store)[1]

        def cancel(run: RunRecord = run) -> None:
            store.cancel(WHO, run.id, happened(EventType.CANCEL_REQUESTED))

        def complete(lease: Lease = lease) -> None:
            store.complete(lease, happened(EventType.COMPLETED), None)

        with ThreadPoolExecutor(2) as pool:
            errors = [job.exception() for job in (pool.submit(cancel), pool.submit(complete))]
        assert store.find("red", run.id).status is Status.COMPLETED
        assert all(error is None or isinstance(error, Conflict) for error in errors)
        assert sum(event.is_terminal_state() for event in store.events(run.id, 0, 10)) == 1


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


def test_what_is_noted_for_a_successor_is_gone_once_the_run_waits_again(store: RunStore) -> None:
    create(store)
    lease = claim(store)[1]
    store.save(lease, work={"stage": "train", "handle": {"pid": 1}})
    assert store.work(lease)["handle"] == {"pid": 1}
    store.save(lease, new_events=[happened(EventType.REQUEUED)])
    assert store.work(claim(store)[1]) == {}


def _version(run: RunRecord, name: str = "a.b.c") -> ModelVersion:
    return ModelVersion(
        name=name, version=0, kind="full", path="/m", files={}, bytes=0, run_id=run.id, base=None,
        created_at=moment(), team="red",
    )  # fmt: skip


def test_sixteen_registrations_at_once_get_sixteen_numbers(store: RunStore) -> None:
    pairs = []
    for number in range(16):
        create(store, key=str(number))
        pairs.append(claim(store))

    def complete(pair: tuple[RunRecord, Lease]) -> str | None:
        return store.complete(pair[1], happened(EventType.COMPLETED), _version(pair[0])).registered_model

    with ThreadPoolExecutor(16) as pool:
        refs = list(pool.map(complete, pairs))
    assert sorted(refs) == sorted(f"a.b.c/{number}" for number in range(1, 17))


def test_an_interrupted_registration_that_is_repeated_makes_one_version(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]
    store.complete(lease, happened(EventType.COMPLETED), _version(run))
    with pytest.raises(LeaseLost):
        store.complete(lease, happened(EventType.COMPLETED), _version(run))
    assert [version.ref for version in store.models("red", None, 10)] == ["a.b.c/1"]


def test_a_removed_number_is_not_given_again(store: RunStore) -> None:
    for number in (1, 2):
        create(store, key=str(number))
        run, lease = claim(store)
        assert store.complete(lease, happened(EventType.COMPLETED), _version(run)).registered_model == f"a.b.c/{number}"
        store.remove_model(WHO, f"a.b.c/{number}")


def test_a_model_that_an_unfinished_run_needs_is_kept(store: RunStore) -> None:
    create(store)
    run, lease = claim(store)
    store.complete(lease, happened(EventType.COMPLETED), _version(run))
    model = store.model("red", "a.b.c")
    from dataclasses import replace

    from fm.types import ModelRef

    ref = ModelRef(kind="registered", name=model.ref)
    waiting = store.create(replace(new_run(), model=ref), "child", WHO)
    with pytest.raises(Conflict):
        store.remove_model(WHO, "a.b.c")
    store.cancel(WHO, waiting.id, happened(EventType.CANCEL_REQUESTED))
    store.remove_model(WHO, "a.b.c")


def test_a_beginning_that_several_ids_share_is_a_conflict(store: RunStore) -> None:
    ids = [create(store, key=str(number)).id for number in range(40)]
    beginning = next(i[:5] for i in ids if sum(other.startswith(i[:5]) for other in ids) > 1)
    with pytest.raises(Conflict):
        store.find("red", beginning)


def test_an_older_ftctl_refuses_a_newer_store(store_url: str) -> None:
    from sqlalchemy import create_engine

    RunStore(store_url).close()
    engine = create_engine(store_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO migrations (name) VALUES ('9999-from-the-future')")
    engine.dispose()
    with pytest.raises(StoreError, match="newer ftctl"):
        RunStore(store_url)


def test_a_first_opening_by_many_makes_one_schema(store_url: str) -> None:
    def opened(number: int) -> str:
        return RunStore(store_url).create(new_run(), f"key-{number}", WHO).id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(opened, range(6)))) == 6


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        RunStore(f"sqlite:///{tmp_path / 'store.db'}")


def test_an_interrupted_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fm.store import migrations

    def broken(_connection: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, ("9999-broken", broken)])
    with pytest.raises(RuntimeError):
        RunStore(f"sqlite:///{tmp_path / 'store.db'}")
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "oracle://x"])
def test_a_database_that_is_not_supported_is_refused(url: str) -> None:
    with pytest.raises((RequestError, MissingExtra)):
        RunStore(url)


def test_a_run_is_not_made_from_what_was_removed_while_it_was_prepared(store: RunStore) -> None:
    create(store)
    record, lease = claim(store)
    ended = store.complete(lease, happened(EventType.COMPLETED), _version(record))
    assert ended.registered_model
    base = ModelRef(kind="registered", name=ended.registered_model)
    fine = store.create(replace(new_run(), model=base), "fine", WHO)
    with pytest.raises(Conflict):
        store.remove_model(WHO, base.name)
    store.cancel(WHO, fine.id, happened(EventType.CANCEL_REQUESTED))
    store.remove_model(WHO, base.name)
    store.remove(WHO, record.id)
    with pytest.raises(NotFound, match=base.name):
        store.create(replace(new_run(), model=base), "late", WHO)
    with pytest.raises(NotFound, match=record.id):
        store.create(new_run(), "late", WHO, parent=record)
    assert store.create(replace(new_run(), model=base), "fine", WHO).id == fine.id


def test_many_set_one_alias_at_once(store: RunStore) -> None:
    create(store)
    record, lease = claim(store)
    store.complete(lease, happened(EventType.COMPLETED), _version(record))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.alias(WHO, "a.b.c", "best", remove=False), range(16)))
    assert store.model("red", "a.b.c@best").aliases == ("best",)


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_a_value_that_the_store_can_not_hold_is_no_outage(store: RunStore) -> None:
    with pytest.raises(RequestError):
        store.find("red", "a\0b")


def test_the_store_of_a_folder_that_others_may_read_is_the_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    RunStore(f"sqlite:///{tmp_path / 'store.db'}").close()
    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600


def test_the_place_of_a_store_is_shown_without_its_password(tmp_path: Path) -> None:
    shared = Database("postgresql+psycopg://ftctl:canary@db.example/team", as_is=True)
    assert shared.place == "postgresql+psycopg://ftctl:***@db.example/team"
    assert Database(f"sqlite:///{tmp_path / 'a.db'}").place == str(tmp_path / "a.db")
