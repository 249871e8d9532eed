"""Who holds a run: claims, leases, agents that come and go, and cancelling."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fm.clock import SimulatedClock
from fm.errors import Conflict, LeaseLost
from fm.lifecycle import EventType, Status
from fm.store.leases import LEASE, Lease
from fm.store.store import RunStore
from fm.types import RunRecord
from support.stores import WHO, claim, create, happened, moment


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


def test_what_is_noted_for_a_successor_is_gone_once_the_run_waits_again(store: RunStore) -> None:
    create(store)
    lease = claim(store)[1]
    store.save(lease, work={"stage": "train", "handle": {"pid": 1}})
    assert store.work(lease)["handle"] == {"pid": 1}
    store.save(lease, new_events=[happened(EventType.REQUEUED)])
    assert store.work(claim(store)[1]) == {}
