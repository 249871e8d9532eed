"""What an agent takes for a training that hangs, and what for one that is slow, saves, or slept with its machine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from fm.agent.signs import Silence, WatchedTime
from fm.backends.scripted import Script, ScriptedLauncher
from fm.clock import SimulatedClock
from fm.files import make_private
from fm.job import PauseReason, Reporter
from fm.launching import GRACE, Handle, Life, Poll
from fm.layout import StageFolder
from fm.lifecycle import EventType, Status
from fm.types import Event
from support.bench import WHO, Bench
from support.stores import moment


class Pausing(ScriptedLauncher):
    """The first attempt does a few quick steps, then pauses for `lasts` seconds, having announced `announced`."""

    def __init__(self, why: PauseReason, *, lasts: int, announced: float) -> None:
        super().__init__(Script(save_every=3), SimulatedClock())
        self.why, self.lasts, self.announced, self.polls = why, lasts, announced, 0

    @property
    def pauses(self) -> bool:
        return self.polls > 6 and self.lasts > 0

    def poll(self, handle: Handle) -> Poll:
        stage = self._stages[handle["stage"]]
        if stage.job.attempt != 1 or stage.code is not None:
            return super().poll(handle)
        self.polls += 1
        if self.polls == 7:
            stage.report.pause(self.why, self.announced)
        if self.pauses:
            self.lasts -= 1
            return Poll(Life.ALIVE)
        poll = super().poll(handle)
        stage.report.heartbeat(self.polls, every=0.0)
        return poll


def test_a_save_that_takes_as_long_as_it_announced_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Pausing("saving", lasts=1500, announced=1800))
    run = bench.step(bench.create(), lambda run: run.status.is_terminal(), limit=4000)
    assert (run.status, run.attempt) == (Status.COMPLETED, 1)


def test_a_save_that_hangs_is_ended_once_it_takes_longer_than_it_announced(tmp_path: Path) -> None:
    bench = Bench(tmp_path, launcher := Pausing("saving", lasts=10**6, announced=1800))
    record = bench.create()
    bench.step(record, lambda _: launcher.pauses)
    began = bench.clock.now()
    run = bench.step(record, lambda run: run.attempt == 2, limit=4000)
    assert timedelta(seconds=1800) < bench.clock.now() - began < timedelta(seconds=1830)
    assert bench.finish(run).status is Status.COMPLETED


def test_a_cancelled_training_gets_the_time_that_its_save_takes(tmp_path: Path) -> None:
    for lasts, allowed in ((400, timedelta(seconds=430)), (10**6, timedelta(seconds=630))):
        bench = Bench(tmp_path / str(lasts), launcher := Pausing("saving", lasts=lasts, announced=600))
        record = bench.create()
        bench.step(record, lambda _, launcher=launcher: launcher.pauses)  # type: ignore[misc]
        began = bench.clock.now()
        enough = Event(type=EventType.CANCEL_REQUESTED, time=moment(), message="enough")
        bench.store.cancel(WHO, record.id, enough)
        run = bench.step(record, lambda run: run.status.is_terminal(), limit=1000)
        assert run.status is Status.STOPPED
        assert GRACE < bench.clock.now() - began < allowed
        assert (run.checkpoint_step or 0) > 3 or lasts > 1000


def test_a_machine_that_was_suspended_or_whose_clock_was_set_ends_no_training(tmp_path: Path) -> None:
    bench = Bench(tmp_path, launcher := Pausing("answering", lasts=10, announced=0))
    record = bench.create()
    bench.step(record, lambda _: launcher.pauses)
    for hours in (8, -3, 8):
        bench.clock.sleep(hours * 3600)
        bench.agent.step()
    run = bench.finish(record)
    assert (run.status, run.attempt) == (Status.COMPLETED, 1)


def test_silence_is_counted_only_while_somebody_listens() -> None:
    watched, now = WatchedTime(), moment()
    assert watched.look(now) == timedelta()
    assert watched.look(now + timedelta(seconds=2)) == timedelta(seconds=2)
    assert watched.look(now + timedelta(hours=9)) == timedelta(seconds=7)
    assert watched.look(now) == timedelta(seconds=7)


def test_a_heartbeat_that_is_no_heartbeat_announces_nothing(tmp_path: Path) -> None:
    folder, silence = StageFolder(make_private(tmp_path / "stage")), Silence()
    for number, text in enumerate(["", "[]", "{}", '{"pause": {"seconds": "x", "why": 1}}', '{"pause": null}']):
        folder.heartbeat.write_text(text)
        silence.listen(folder, number, timedelta(seconds=number))
        assert silence.stalled_after <= timedelta(minutes=30)
        assert silence.save_takes == timedelta()


def test_a_step_or_a_sign_counts_and_only_a_step_ends_a_pause(tmp_path: Path) -> None:
    folder, silence = StageFolder(make_private(tmp_path / "stage")), Silence()
    report = Reporter(folder)
    report.pause("loading", 7200)
    silence.listen(folder, 0, timedelta())
    assert silence.stalled_after == timedelta(hours=2)
    report._last_beat -= 2
    report.sign()
    assert silence.listen(folder, 0, timedelta(hours=1)) == timedelta()
    assert silence.stalled_after == silence.gone_after == timedelta(hours=2)
    report.heartbeat(1)
    silence.listen(folder, 0, timedelta(hours=2))
    assert silence.stalled_after == timedelta(minutes=30)
    for step in range(2, 5):
        report.heartbeat(step, every=0.0)
        silence.listen(folder, 0, timedelta(hours=2, seconds=step))
    assert silence.stalled_after == timedelta(minutes=5)


def test_of_a_flood_of_output_the_beginning_and_the_end_stay_on_disk(tmp_path: Path) -> None:
    class Floods(ScriptedLauncher):
        printed = 0

        def poll(self, handle: Handle) -> Poll:
            if handle["kind"] == "train" and self.printed < 20:
                self.printed += 1
                with self._stages[handle["stage"]].folder.log.open("ab") as log:
                    log.write(b"x" * (10 << 20) + b"%d\n" % self.printed)  # of which some lines end nowhere near
                return Poll(Life.ALIVE)
            return super().poll(handle)

    bench = Bench(tmp_path, Floods(Script(), SimulatedClock()))
    record = bench.create()
    assert bench.finish(record).status is Status.COMPLETED
    log = bench.storage.run(record.id).attempt(1).log.read_bytes()
    assert len(log) < 75 << 20
    assert log.startswith(b"xxx") and b"step 10/10" in log
