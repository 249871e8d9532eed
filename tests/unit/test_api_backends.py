"""Which backend a call reaches: of a block, of the process, of the environment."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fm
from fm.backends.fake import open_fake
from fm.context import current
from support.rows import MODEL

pytestmark = pytest.mark.usefixtures("fm_fake")


def test_a_run_stays_with_the_backend_that_made_it(data: Path) -> None:
    run = fm.create(MODEL, data)
    with fm.backend("fake"):
        assert fm.list() == []
        assert fm.wait(run).status is fm.Status.COMPLETED


def test_a_block_ends_where_it_ends_and_a_plain_call_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm.context._process_wide", None)
    outside = current()
    with fm.backend("fake") as inner:
        assert current() is inner
        with fm.backend(open_fake()) as innermost:
            assert current() is innermost
        assert current() is inner
    assert current() is outside


def test_a_plain_call_reaches_other_threads_and_a_block_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere() -> object:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(current).result()

    def check() -> None:
        monkeypatch.setattr("fm.context._process_wide", None)
        chosen = open_fake()
        fm.backend(chosen)
        with fm.backend("fake") as inner:
            assert current() is inner
            assert elsewhere() is chosen
        assert elsewhere() is chosen

    contextvars.Context().run(check)


def test_fm_backend_names_the_backend_of_all_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm.context._process_wide", None)
    monkeypatch.setenv("FM_BACKEND", "fake")
    assert contextvars.Context().run(current).name == "fake"
