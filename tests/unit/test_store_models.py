"""Versions of models in the store: numbered, kept while they are needed, removed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fm.errors import Conflict, LeaseLost, NotFound
from fm.lifecycle import EventType
from fm.store.leases import Lease
from fm.store.store import RunStore
from fm.types import ModelRef, ModelVersion, RunRecord
from support.stores import WHO, claim, create, happened, moment, new_run


def version_of(run: RunRecord) -> ModelVersion:
    """What a run registers, before it has its number."""
    return ModelVersion(
        name="a.b.c", version=0, kind="full", path="/m", files={}, bytes=0, run_id=run.id, base=None,
        created_at=moment(), team="red",
    )  # fmt: skip


def test_sixteen_registrations_at_once_get_sixteen_numbers(store: RunStore) -> None:
    pairs = []
    for number in range(16):
        create(store, key=str(number))
        pairs.append(claim(store))

    def complete(pair: tuple[RunRecord, Lease]) -> str | None:
        return store.complete(pair[1], happened(EventType.COMPLETED), version_of(pair[0])).registered_model

    with ThreadPoolExecutor(16) as pool:
        refs = list(pool.map(complete, pairs))
    assert sorted(refs) == sorted(f"a.b.c/{number}" for number in range(1, 17))


def test_an_interrupted_registration_that_is_repeated_makes_one_version(store: RunStore) -> None:
    run, lease = create(store), claim(store)[1]
    store.complete(lease, happened(EventType.COMPLETED), version_of(run))
    with pytest.raises(LeaseLost):
        store.complete(lease, happened(EventType.COMPLETED), version_of(run))
    assert [version.ref for version in store.models("red", None, 10)] == ["a.b.c/1"]


def test_a_removed_number_is_not_given_again(store: RunStore) -> None:
    for number in (1, 2):
        create(store, key=str(number))
        run, lease = claim(store)
        ended = store.complete(lease, happened(EventType.COMPLETED), version_of(run))
        assert ended.registered_model == f"a.b.c/{number}"
        store.remove_model(WHO, f"a.b.c/{number}")


def test_a_model_that_an_unfinished_run_needs_is_kept(store: RunStore) -> None:
    create(store)
    run, lease = claim(store)
    store.complete(lease, happened(EventType.COMPLETED), version_of(run))
    model = store.model("red", "a.b.c")
    ref = ModelRef(kind="registered", name=model.ref)
    waiting = store.create(replace(new_run(), model=ref), "child", WHO)
    with pytest.raises(Conflict):
        store.remove_model(WHO, "a.b.c")
    store.cancel(WHO, waiting.id, happened(EventType.CANCEL_REQUESTED))
    store.remove_model(WHO, "a.b.c")


def test_a_run_is_not_made_from_what_was_removed_while_it_was_prepared(store: RunStore) -> None:
    create(store)
    record, lease = claim(store)
    ended = store.complete(lease, happened(EventType.COMPLETED), version_of(record))
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
    store.complete(lease, happened(EventType.COMPLETED), version_of(record))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.alias(WHO, "a.b.c", "best", remove=False), range(16)))
    assert store.model("red", "a.b.c@best").aliases == ("best",)
