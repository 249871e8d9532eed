"""`fm.Run` and the verbs that list, follow, cancel and remove, over the fake."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import fm
from fm.backends.scripted import ScriptedLauncher
from fm.display import local_time
from fm.follow import wait_for
from fm.tables import Metrics
from support.rows import MODEL

pytestmark = pytest.mark.usefixtures("fm_fake")


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


def test_the_error_of_a_failed_run_survives_pickling_without_its_run() -> None:
    error = pickle.loads(pickle.dumps(fm.RunFailed("it failed", fault="user", hint="look")))
    assert (str(error), error.fault) == ("it failed\n  → look", "user")
