"""What every backend must do, seen through the public verbs. A backend joins by a file like `test_fake.py`.

The subclass supplies the fixture `backend`, and overrides `quick` and `endless` where other parameters make a training
short, or long enough to be cancelled.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fm
from fm.backends.base import Backend, RunFilter
from fm.backends.stored import StoreBackend
from fm.errors import Conflict, DataError, NotFound, RequestError, RunFailed, RunStopped, WaitTimeout
from fm.lifecycle import EventType, Fault, Status
from fm.types import Principal
from support.data import many_pairs

MODEL = "fm/nano-llama"
PATIENCE = 120.0


def until(condition: Callable[[], bool], *, backend: Backend, what: str) -> None:
    """Asks until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:g} s"
        time.sleep(backend.poll_seconds)


class Contract:
    """The contract's common ground: how a test makes a run."""

    quick: ClassVar[dict[str, Any]] = {"training_duration": "4ba", "batch_size": 8}
    endless: ClassVar[dict[str, Any]] = {"training_duration": "100000ba", "batch_size": 8, "save_interval": "5ba"}

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return many_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 48)

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, backend: Backend, data: Path) -> Callable[..., fm.Run]:
        """Makes a run; parameters replace the quick ones."""

        def make(**parameters: Any) -> fm.Run:
            values: dict[str, Any] = {
                "model": MODEL,
                "train_data_path": str(data),
                "task_type": "INSTRUCTION_FINETUNE",
                "method": "full",
                "learning_rate": 1e-3,
                "backend": backend,
                **cls.quick,
            }
            return fm.create(**{**values, **parameters})

        return make

    @pytest.fixture(scope="class")
    @classmethod
    def done(cls, make: Callable[..., fm.Run], data: Path) -> fm.Run:
        """A run that COMPLETED and registered `main.contract.done`; shared by the tests that only look."""
        run = make(
            register_to="main.contract.done",
            name="contract-done",
            eval_data_path=str(data),
            eval_prompts=["what is 3 plus 3?\n"],
            tags={"purpose": "contract"},
        )
        return run.wait(PATIENCE)

    @pytest.fixture(scope="class")
    @classmethod
    def stopped(cls, make: Callable[..., fm.Run], backend: Backend) -> fm.Run:
        """A run that was cancelled while it trained, after a checkpoint."""
        run = make(name="contract-stopped", **cls.endless)
        until(lambda: run.refresh().record.checkpoint_step is not None, backend=backend, what="a checkpoint")
        run.cancel(reason="seen enough")
        return run.wait(PATIENCE, raise_on_failure=False)


class RunContract(Contract):
    """A run's way from create to its end."""

    def test_a_run_completes_and_registers_its_model(self, done: fm.Run) -> None:
        assert done.status is Status.COMPLETED
        assert done.registered_model == "main.contract.done/1"
        assert done.attempt == 1
        assert done.completed_at >= done.started_at >= done.created_at

    def test_events_are_numbered_without_gaps_and_tell_the_whole_story(self, done: fm.Run) -> None:
        events = done.get_events()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        kinds = [event.type for event in events]
        story = [
            EventType.CREATED,
            EventType.CHECK_PASSED,
            EventType.STARTED,
            EventType.DATA_VALIDATED,
            EventType.MODEL_INITIALIZED,
            EventType.TRAIN_STARTED,
            EventType.TRAIN_FINISHED,
            EventType.COMPLETED,
        ]
        assert [kind for kind in kinds if kind in story] == story
        assert kinds.count(EventType.COMPLETED) == 1
        assert events[-1].is_terminal_state()

    def test_events_can_be_read_on_from_any_of_them(self, done: fm.Run, backend: Backend) -> None:
        whole = list(backend.runs.events(done.id))
        assert list(backend.runs.events(done.id, after=3)) == whole[3:]
        assert list(backend.runs.events(done.id, after=1, limit=2)) == whole[1:3]
        assert list(backend.runs.events(done.id, after=len(whole))) == []

    def test_following_the_events_of_an_ended_run_returns(self, done: fm.Run) -> None:
        assert list(done.events(follow=True)) == done.get_events()

    def test_the_counts_of_the_data_are_on_the_run(self, done: fm.Run) -> None:
        assert done.counts is not None
        assert done.counts.examples == 48
        assert done.counts.tokens >= done.counts.trained_tokens > 0

    def test_metrics_come_by_step_and_can_be_chosen_by_key(self, done: fm.Run, backend: Backend) -> None:
        loss = done.metrics("loss/train/total")
        steps = [row.step for row in loss]
        assert steps == sorted(set(steps)) and len(steps) >= 2
        assert loss.keys == ("loss/train/total",)
        later = backend.runs.metrics(done.id, keys=["loss/train/total"], after_step=steps[0])
        assert [row.step for row in later] == steps[1:]

    def test_the_answers_to_eval_prompts_are_events(self, done: fm.Run) -> None:
        samples = [event.data["samples"] for event in done.events() if event.type is EventType.SAMPLES_GENERATED]
        assert samples and samples[-1][0]["prompt"] == "what is 3 plus 3?\n"

    def test_the_log_can_be_read_in_pieces(self, done: fm.Run, backend: Backend) -> None:
        first = backend.runs.logs(done.id)
        assert backend.runs.logs(done.id, offset=first.next_offset).text == ""
        assert done.logs().startswith(first.text)

    def test_the_record_says_who_asked_from_where_and_with_what(self, done: fm.Run) -> None:
        caller = done.record.caller
        assert caller.user and caller.host and caller.cwd
        assert caller.packages["ftctl"] == fm.__version__
        assert len(done.record.train_data.digest) == 64
        assert done.tags == {"purpose": "contract"}

    def test_a_run_is_found_by_id_by_the_beginning_of_its_id_and_by_name(self, done: fm.Run, backend: Backend) -> None:
        for ref in (done.id, done.id[:-2], done.id.removeprefix("run-")[:-1], done.name):
            assert fm.get(ref, backend=backend) == done

    def test_an_unknown_run_is_not_found(self, backend: Backend) -> None:
        for ref in ("run-000000000000", "no-such-run", "", "run-", "../x", "%"):
            with pytest.raises(NotFound):
                backend.runs.get(ref)

    def test_the_same_key_makes_one_run(self, make: Callable[..., fm.Run]) -> None:
        first = make(idempotency_key="only-once", training_duration="1ba")
        assert make(idempotency_key="only-once", training_duration="1ba") == first
        assert make(idempotency_key="another", training_duration="1ba") != first

    def test_a_name_means_the_latest_run_that_bears_it(self, make: Callable[..., fm.Run], backend: Backend) -> None:
        make(name="twice", training_duration="1ba")
        latest = make(name="twice", training_duration="1ba")
        assert fm.get("twice", backend=backend) == latest

    def test_waiting_gives_up_at_its_timeout_and_the_run_goes_on(self, make: Callable[..., fm.Run]) -> None:
        run = make(**self.endless)
        with pytest.raises(WaitTimeout):
            run.wait(0)
        assert not run.refresh().status.is_terminal()
        run.cancel()
        run.wait(PATIENCE, raise_on_failure=False)

    def test_what_only_a_tokenizer_can_see_fails_the_run_before_training(
        self, make: Callable[..., fm.Run], backend: Backend, tmp_path: Path
    ) -> None:
        run = make(**self.refused_by_the_check(backend, tmp_path))
        with pytest.raises(RunFailed) as failure:
            run.wait(PATIENCE)
        assert failure.value.run.status is Status.FAILED
        assert failure.value.run.fault is Fault.USER
        assert run.refresh().reason
        kinds = [event.type for event in run.events()]
        assert kinds[-1] is EventType.CHECK_FAILED and EventType.TRAIN_STARTED not in kinds

    def refused_by_the_check(self, backend: Backend, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        """Parameters of a run of which no row keeps a trained token: every prompt alone is over the context."""
        path = folder / "long.jsonl"
        rows = [{"prompt": hashlib.sha512(bytes([n])).hexdigest(), "response": "yes"} for n in range(16)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"train_data_path": str(path), "context_length": 8}


class ListContract(Contract):
    """Lists are filtered and paged where the runs are kept."""

    @pytest.fixture(scope="class")
    @classmethod
    def five(cls, make: Callable[..., fm.Run]) -> list[fm.Run]:
        names = ("qa-one", "qa-two", "chat-one", "chat-two", "chat-three")
        return [make(name=name, experiment_path="/lists", training_duration="1ba").wait(PATIENCE) for name in names]

    def test_the_newest_run_comes_first(self, five: list[fm.Run], backend: Backend) -> None:
        listed = fm.list(experiment_id=five[0].experiment_id, backend=backend)
        assert [run.id for run in listed] == [run.id for run in reversed(five)]

    def test_a_list_is_narrowed_by_status_name_owner_and_time(self, five: list[fm.Run], backend: Backend) -> None:
        owner = five[0].created_by
        assert {run.name for run in fm.list("qa-*", backend=backend)} == {"qa-one", "qa-two"}
        assert fm.list(five[2].id[:-1], backend=backend) == [five[2]]
        assert fm.list(statuses="FAILED", backend=backend) == []
        assert len(fm.list(statuses=["completed", Status.FAILED], backend=backend)) == 5
        assert fm.list(user_emails="nobody", backend=backend) == []
        assert len(fm.list(user_emails=[owner], backend=backend)) == 5
        assert fm.list(before=five[0].created_at, backend=backend) == []
        assert fm.list(after=five[4].created_at, backend=backend) == [five[4]]

    def test_pages_join_without_gap_or_repeat(self, five: list[fm.Run], backend: Backend) -> None:
        seen: list[str] = []
        while page := backend.runs.list(RunFilter(limit=2, cursor=seen[-1] if seen else None)):
            assert len(page) <= 2
            seen += [run.id for run in page]
        assert seen == [run.id for run in reversed(five)]

    def test_an_unknown_status_is_refused(self, backend: Backend) -> None:
        with pytest.raises(RequestError):
            fm.list(statuses="FINISHED", backend=backend)

    @pytest.fixture(scope="class")
    @classmethod
    def stranger(cls, backend: Backend) -> Backend:
        """The same runs and models, as somebody of another team sees them."""
        assert isinstance(backend, StoreBackend)
        return backend.scoped(Principal(user="eve", team="others"))

    def test_another_team_sees_nothing_of_it(self, five: list[fm.Run], stranger: Backend) -> None:
        assert list(stranger.runs.list(RunFilter())) == []
        assert list(stranger.models.list()) == []
        for ask in (stranger.runs.get, stranger.runs.events, stranger.runs.cancel, stranger.runs.delete):
            with pytest.raises(NotFound):
                ask(five[0].id)
        with pytest.raises(NotFound):
            list(stranger.runs.follow(five[0].id))
        with pytest.raises(NotFound):
            stranger.runs.list(RunFilter(cursor=five[0].id))


class CancelContract(Contract):
    """Cancelling, resuming and deleting."""

    def test_a_cancelled_run_is_stopped_with_a_checkpoint_and_its_reason(self, stopped: fm.Run) -> None:
        assert stopped.status is Status.STOPPED
        assert stopped.checkpoints()
        assert stopped.get_events()[-1].type is EventType.CANCELED
        assert any("seen enough" in event.message for event in stopped.events())

    def test_waiting_for_a_stopped_run_raises(self, stopped: fm.Run) -> None:
        with pytest.raises(RunStopped):
            stopped.wait(PATIENCE)

    def test_an_ended_run_cannot_be_cancelled(self, stopped: fm.Run, backend: Backend) -> None:
        before = stopped.get_events()
        with pytest.raises(Conflict):
            stopped.cancel()
        assert fm.cancel(stopped, backend=backend) == 0
        assert stopped.get_events() == before

    def test_cancelling_twice_is_cancelling_once(self, make: Callable[..., fm.Run]) -> None:
        run = make(**self.endless)
        run.cancel()
        if not run.refresh().status.is_terminal():
            run.cancel()
        ended = run.wait(PATIENCE, raise_on_failure=False)
        asked = (EventType.CANCEL_REQUESTED, EventType.CANCELED)
        assert ended.status is Status.STOPPED
        assert sorted(event.type for event in ended.events() if event.type in asked) in (
            [EventType.CANCELED],
            sorted(asked),
        )

    def test_a_resumed_run_goes_on_from_the_last_checkpoint(self, stopped: fm.Run, backend: Backend) -> None:
        child = stopped.resume()
        assert child.parent == stopped.id and child != stopped
        until(lambda: child.refresh().status is Status.RUNNING, backend=backend, what="the child's training")
        started = next(event for event in child.events() if event.type is EventType.TRAIN_STARTED)
        assert started.data["step"] == stopped.checkpoints()[-1].step
        with pytest.raises(Conflict):
            stopped.backend.runs.delete(stopped.id)
        child.cancel()
        assert child.wait(PATIENCE, raise_on_failure=False).status is Status.STOPPED

    def test_a_completed_run_cannot_be_resumed(self, done: fm.Run) -> None:
        with pytest.raises(Conflict):
            done.resume()

    def test_only_an_ended_run_can_be_deleted(self, make: Callable[..., fm.Run], backend: Backend) -> None:
        run = make(**self.endless)
        with pytest.raises(Conflict):
            fm.delete(run, backend=backend)
        run.cancel()
        run.wait(PATIENCE, raise_on_failure=False)
        fm.delete(run, backend=backend)
        with pytest.raises(NotFound):
            backend.runs.get(run.id)


class ModelContract(Contract):
    """The registry."""

    def test_a_version_is_found_by_name_number_and_alias(self, done: fm.Run, backend: Backend) -> None:
        backend.models.alias("main.contract.done/1", "prod")
        for ref in ("main.contract.done", "main.contract.done/1", "main.contract.done@prod"):
            assert backend.models.get(ref).ref == done.registered_model
        assert backend.models.get("main.contract.done").aliases == ("prod",)
        backend.models.alias("main.contract.done", "prod", remove=True)
        with pytest.raises(NotFound):
            backend.models.get("main.contract.done@prod")

    def test_an_unknown_model_is_not_found(self, backend: Backend) -> None:
        for ref in ("main.contract.none", "main.contract.done/99", "main.contract.done@none", "x", "a.b.c/", "a.b.c@"):
            with pytest.raises((NotFound, RequestError)):
                backend.models.get(ref)

    def test_the_lineage_says_how_the_version_was_made(self, done: fm.Run, backend: Backend) -> None:
        version = backend.models.get(done.registered_model)
        assert version.run_id == done.id
        assert version.lineage["request"]["model"] == MODEL
        assert version.lineage["train_data"]["digest"] == done.record.train_data.digest
        assert version.lineage["caller"]["packages"]
        assert version.files and version.bytes > 0

    def test_the_files_can_be_opened_and_bear_their_digests(self, done: fm.Run, backend: Backend) -> None:
        from fm.files import digest_file

        version = backend.models.get(done.registered_model)
        folder = backend.models.open(done.registered_model)
        assert version.files == {name: digest_file(folder / name) for name in version.files}

    def test_rerun_makes_the_next_version_with_the_same_weights(self, done: fm.Run, backend: Backend) -> None:
        again = fm.rerun(done, backend=backend).wait(PATIENCE)
        assert again.registered_model == "main.contract.done/2"
        first, second = backend.models.get("main.contract.done/1"), backend.models.get("main.contract.done/2")
        weights = [name for name in first.files if name.endswith(".safetensors")]
        assert weights and all(first.files[name] == second.files[name] for name in weights)
        assert [version.version for version in backend.models.list(name="main.contract.*")] == [2, 1]

    def test_a_schema_alone_registers_under_the_runs_name(self, make: Callable[..., fm.Run]) -> None:
        run = make(register_to="main.contract", name="own-name", training_duration="1ba").wait(PATIENCE)
        assert run.registered_model == "main.contract.own-name/1"

    def test_a_model_outlives_its_run_and_a_number_is_never_used_twice(
        self, make: Callable[..., fm.Run], backend: Backend
    ) -> None:
        run = make(register_to="main.contract.short", training_duration="1ba").wait(PATIENCE)
        fm.delete(run, backend=backend)
        assert backend.models.open("main.contract.short/1").is_dir()
        backend.models.delete("main.contract.short/1")
        with pytest.raises(NotFound):
            backend.models.get("main.contract.short")
        again = make(register_to="main.contract.short", training_duration="1ba").wait(PATIENCE)
        assert again.registered_model == "main.contract.short/2"

    def test_a_model_that_another_is_based_on_cannot_be_removed(
        self, done: fm.Run, make: Callable[..., fm.Run], backend: Backend
    ) -> None:
        child = make(model=done.registered_model, register_to="main.contract.child", method="lora")
        assert child.wait(PATIENCE).record.model.kind == "registered"
        with pytest.raises(Conflict):
            backend.models.delete(done.registered_model)


class RequestContract(Contract):
    """A bad request raises before anything is written."""

    @pytest.mark.parametrize(
        ("wrong", "error", "words"),
        [
            ({"training_duration": "three"}, RequestError, "training_duration"),
            ({"training_duration": "0ep"}, RequestError, "at least 1"),
            ({"learning_rate": "fast"}, RequestError, "learning_rate"),
            ({"learning_rate": -1e-4}, RequestError, "learning_rate"),
            ({"learning_rate": float("nan")}, RequestError, "learning_rate"),
            ({"register_to": "main.../etc.x"}, RequestError, "register_to"),
            ({"register_to": "main.a.b.c"}, RequestError, "register_to"),
            ({"name": "../../etc/passwd"}, RequestError, "name"),
            ({"train_data_path": "/no/such/file.jsonl"}, (RequestError, DataError, NotFound), "/no/such/file.jsonl"),
            ({"train_data_path": "dbfs:/mnt/chats.jsonl"}, RequestError, "dbfs"),
            ({"model": "./no-such-model"}, (NotFound, RequestError), "no-such-model"),
            ({"model": "main.no.model"}, (NotFound, RequestError), "main.no.model"),
            ({"method": "qlora"}, RequestError, "random weights"),
            ({"task_type": "CHAT_COMPLETION"}, DataError, "INSTRUCTION_FINETUNE"),
            ({"context_length": 10**6}, RequestError, "context_length"),
            ({"batch_size": 0}, RequestError, "batch_size"),
            ({"eval_prompts": 0.5}, RequestError, "eval_prompts"),
            ({"new_tokens": 7}, RequestError, "new_tokens"),
            ({"trackers": True}, RequestError, "trackers"),
            ({"launcher": "cloud"}, RequestError, "cloud"),
        ],
    )
    def test_a_bad_parameter_is_named_and_leaves_nothing(
        self, wrong: dict[str, Any], error: type[Exception], words: str, make: Callable[..., fm.Run], backend: Backend
    ) -> None:
        with pytest.raises(error, match=words):
            make(**wrong)
        assert list(backend.runs.list(RunFilter())) == []

    def test_a_malformed_line_is_named(
        self, make: Callable[..., fm.Run], backend: Backend, tmp_path: Path
    ) -> None:
        data = many_pairs(tmp_path / "pairs.jsonl", 5000)
        lines = data.read_text().splitlines()
        lines[4211] = '{"prompt": "cut of'
        data.write_text("\n".join(lines))
        with pytest.raises(DataError) as error:
            make(train_data_path=str(data))
        assert [fault.line for fault in error.value.faults] == [4212]
        assert "4212" in str(error.value)
        assert list(backend.runs.list(RunFilter())) == []

    def test_a_dry_run_checks_everything_and_writes_nothing(
        self, make: Callable[..., Any], backend: Backend
    ) -> None:
        plan = make(dry_run=True)
        assert plan.rows == 48
        assert list(backend.runs.list(RunFilter())) == []
