"""Finding runs: by name, owner, status and moment; and the verbs that take many at once."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

import fm
from fm.when import parse_moment
from support.rows import MODEL

pytestmark = pytest.mark.usefixtures("fm_fake")


def test_a_name_is_the_latest_run_of_that_name_and_ids_may_be_cut(data: Path) -> None:
    first = fm.create(MODEL, data, name="same")
    second = fm.create(MODEL, data, name="same")
    assert fm.get("same") == second
    assert fm.get(first.id) == first
    assert fm.get(first.id.removeprefix("run-")[:8]) == first
    with pytest.raises(fm.NotFound):
        fm.get("other")


def test_list_finds_by_name_glob_status_owner_and_moment(data: Path) -> None:
    runs = [fm.create(MODEL, data, name=name) for name in ("qa-1", "qa-2", "other")]
    runs[0].wait()
    assert {run.name for run in fm.list("qa-*")} == {"qa-1", "qa-2"}
    assert [run.name for run in fm.list([runs[2], "qa-1"])] == ["other", "qa-1"]
    assert fm.list(statuses="completed") == [runs[0]]
    assert runs[0] in fm.list(statuses=[fm.Status.COMPLETED, "queued"])
    assert fm.list(user_emails="nobody@example.org") == []
    assert len(fm.list(user_emails=["tester"])) == 3
    assert len(fm.list(after=date.today() - timedelta(days=1))) == 3
    assert fm.list(before="2020-01-01") == []
    assert len(fm.list(after="2h", include_details=False)) == 3
    assert len(fm.list(limit=2)) == 2
    assert [run.name for run in fm.list(limit=None)] == ["other", "qa-2", "qa-1"]


def test_list_reads_page_after_page(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [fm.create(MODEL, data).name for _ in range(5)]
    monkeypatch.setattr("fm.api.runs.PAGE_LIMIT", 2)
    assert [run.name for run in fm.list(limit=None)] == names[::-1]
    assert [run.name for run in fm.list(limit=3)] == names[:1:-1]


def test_a_list_shows_itself_as_a_table_and_becomes_a_data_frame(data: Path) -> None:
    run, runs = fm.create(MODEL, data), fm.list()
    assert run.name in repr(runs)
    assert list(runs.to_pandas()["name"]) == [run.name]
    assert repr(fm.list("nothing")) == "no runs"


@pytest.mark.parametrize("statuses", ["DONE", ["QUEUED", "nope"]])
def test_an_unknown_status_is_refused(statuses: object) -> None:
    with pytest.raises(fm.RequestError, match="COMPLETED"):
        fm.list(statuses=statuses)  # type: ignore[arg-type]


def test_cancel_counts_what_it_cancelled_and_passes_over_what_has_ended(data: Path) -> None:
    ended = fm.create(MODEL, data, experiment_path="/e").wait()
    live = [fm.create(MODEL, data, experiment_path="/e") for _ in range(2)]
    assert fm.cancel([ended, live[0].name]) == 1
    assert fm.cancel(experiment_id=ended.experiment_id) == 1
    assert fm.cancel(ended) == 0
    with pytest.raises(fm.Conflict):
        ended.cancel()
    with pytest.raises(fm.RequestError):
        fm.cancel()
    with pytest.raises(fm.NotFound):
        fm.cancel("nope")


def test_delete_removes_an_ended_run_and_refuses_a_live_one(data: Path) -> None:
    run = fm.create(MODEL, data)
    with pytest.raises(fm.Conflict):
        fm.delete(run)
    fm.delete(run.wait())
    with pytest.raises(fm.NotFound):
        fm.get(run.id)


def test_get_models_lists_presets_and_each_registered_model_once(data: Path) -> None:
    for _ in range(2):
        fm.create(MODEL, data, "a.b.c").wait()
    found = {model.name: model for model in fm.get_models()}
    assert {"fm/tiny-llama", "a.b.c"} <= set(found)
    assert (found["a.b.c"].display_name, found["a.b.c"].max_context_length) == ("a.b.c/2", None)
    assert len(found) == len(fm.get_models())


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("2026-11-23T10:00:00Z", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23T10:00:00+02:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02", datetime(2026, 1, 2).astimezone(UTC)),
        (date(2026, 1, 2), datetime(2026, 1, 2).astimezone(UTC)),
    ],
)
def test_moments_are_read_as_people_write_them(value: str | datetime | date, moment: datetime) -> None:
    assert parse_moment(value, field="after", now=NOW) == moment


@pytest.mark.parametrize("value", ["yesterday", "", "2026-13-01", "999999999w", "-2h"])
def test_what_is_no_moment_is_refused_with_examples(value: str) -> None:
    with pytest.raises(fm.RequestError, match="2026-11-23") as caught:
        parse_moment(value, field="after")
    assert caught.value.field == "after"
