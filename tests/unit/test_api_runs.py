"""`fm.Run` and the verbs that list, follow, cancel and remove, over the fake."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

import fm
from fm.backends.fake import open_fake
from fm.backends.scripted import ScriptedLauncher
from fm.context import current
from fm.display import local_time
from fm.follow import wait_for
from fm.tables import Metrics
from fm.when import parse_moment
from support.rows import chats

pytestmark = pytest.mark.usefixtures("fm_fake")


MODEL = "org/any-model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats(tmp_path / "train.jsonl")


@pytest.fixture
def run(data: Path) -> fm.Run:
    return fm.create(MODEL, data, "a.b.c", name="qa-1", eval_prompts=["hi"])


def test_following_events_works_before_there_are_any_and_ends_with_the_terminal_one(run: fm.Run) -> None:
    types = [event.type for event in run.events(follow=True)]
    assert types[0] is fm.EventType.CREATED
    assert types[-1] is fm.EventType.COMPLETED
    assert types.count(fm.EventType.COMPLETED) == 1
    assert run.status is fm.Status.COMPLETED


def test_following_the_events_of_an_ended_run_returns(run: fm.Run) -> None:
    run.wait()
    assert [event.seq for event in run.events(follow=True)] == [event.seq for event in run.get_events()]


def test_events_are_numbered_without_gaps(run: fm.Run) -> None:
    events = run.wait().get_events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_a_cancelled_run_ends_the_following(run: fm.Run, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(holds_at=3)
    for event in run.events(follow=True):
        if event.type is fm.EventType.TRAIN_UPDATED:
            fm.cancel(run)
            break
    assert list(run.events(follow=True))[-1].is_terminal_state()
    assert run.refresh().status is fm.Status.STOPPED
    with pytest.raises(fm.RunStopped, match="resume"):
        run.wait()


def test_logs_are_whole_and_following_them_gives_the_same(run: fm.Run) -> None:
    followed = "".join(run.logs(follow=True))
    assert "step 10/10" in followed
    assert run.logs() == followed


def test_wait_gives_up_after_its_timeout_and_the_run_goes_on(run: fm.Run, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(holds_at=3)
    times = iter(range(1000))
    with pytest.raises(fm.WaitTimeout, match="ftctl runs wait qa-1"):
        wait_for(run, timeout=50, clock=lambda: float(next(times)), sleep=lambda _: None)
    assert not run.refresh().status.is_terminal()
    with pytest.raises(fm.WaitTimeout):
        run.wait(timeout=0)


def test_ctrl_c_while_waiting_detaches_and_says_how_to_come_back(
    run: fm.Run, capsys: pytest.CaptureFixture[str], fm_fake: ScriptedLauncher
) -> None:
    fm_fake.script = fm.testing.Script(holds_at=3)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_for(run, sleep=interrupt)
    assert "ftctl runs wait qa-1" in capsys.readouterr().err
    assert not run.refresh().status.is_terminal()


def test_wait_shows_plain_lines_off_a_terminal_on_stderr(run: fm.Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.wait()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "COMPLETED" in shown.err
    assert "\x1b" not in shown.err


def test_wait_for_several_returns_all_and_raises_once_all_have_ended(
    data: Path, fm_fake: ScriptedLauncher
) -> None:
    good = fm.create(MODEL, data)
    assert fm.wait([good, good.id])[0].status is fm.Status.COMPLETED
    fm_fake.script = fm.testing.Script(fails_at=1)
    bad, other = fm.create(MODEL, data), fm.create(MODEL, data)
    with pytest.raises(fm.RunFailed):
        fm.wait([bad, other])
    assert other.refresh().status.is_terminal()


def test_metrics_are_rows_by_step_with_a_data_frame(run: fm.Run) -> None:
    metrics = run.wait().metrics()
    assert [row.step for row in metrics] == list(range(1, 11))
    assert metrics.series("loss/train/total")[0][1] > metrics.series("loss/train/total")[-1][1]
    frame = metrics.to_pandas()
    assert frame.index.name == "step"
    assert list(frame["loss/train/total"]) == [value for _, value in metrics.series("loss/train/total")]
    assert run.metrics("lr").keys == ("lr",)


def test_a_run_without_metrics_shows_itself_all_the_same() -> None:
    assert repr(Metrics(())) == "no metrics yet"
    assert len(Metrics(()).to_pandas()) == 0


def test_resume_makes_a_child_that_ends_what_was_begun(run: fm.Run, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(fails_at=7)
    run.wait(raise_on_failure=False)
    fm_fake.script = fm.testing.Script()
    child = run.resume().wait()
    assert (child.parent, child.status) == (run.id, fm.Status.COMPLETED)
    assert "goes on from step 5" in child.logs()


def test_a_run_in_a_notebook_shows_local_times(run: fm.Run) -> None:
    assert f"<td>{local_time(run.created_at)}</td>" in run._repr_html_()


def test_plot_draws_the_loss_in_the_terminal(run: fm.Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.wait().plot()
    shown = capsys.readouterr().out
    assert "training loss" in shown
    assert "qa-1" in shown
    assert "\x1b" not in shown


def test_plot_writes_a_png(run: fm.Run, tmp_path: Path) -> None:
    path = run.wait().plot(tmp_path / "loss.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_before_the_first_loss_says_so(run: fm.Run) -> None:
    with pytest.raises(fm.NotFound, match="no loss yet"):
        run.plot()


def test_the_notebook_view_escapes_what_users_wrote(data: Path) -> None:
    evil = '<script>alert("1")</script>'
    run = fm.create(MODEL, data, experiment_path=evil, name="x")
    object.__setattr__(run.record, "reason", evil)
    for html in (run._repr_html_(), fm.list()._repr_html_(), Metrics(())._repr_html_()):
        assert "<script" not in html
    assert "&lt;script&gt;" in run._repr_html_()


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


def test_a_list_shows_itself_as_a_table_and_becomes_a_data_frame(run: fm.Run) -> None:
    runs = fm.list()
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


def test_delete_removes_an_ended_run_and_refuses_a_live_one(run: fm.Run) -> None:
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


def test_a_run_stays_with_the_backend_that_made_it(run: fm.Run) -> None:
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
    import contextvars
    from concurrent.futures import ThreadPoolExecutor

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
    import contextvars

    monkeypatch.setattr("fm.context._process_wide", None)
    monkeypatch.setenv("FM_BACKEND", "fake")
    assert contextvars.Context().run(current).name == "fake"


def test_the_error_of_a_failed_run_survives_pickling_without_its_run() -> None:
    error = pickle.loads(pickle.dumps(fm.RunFailed("it failed", fault="user", hint="look")))
    assert (str(error), error.fault) == ("it failed\n  → look", "user")


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
