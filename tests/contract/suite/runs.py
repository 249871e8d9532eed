"""A run's way from create to its end, and finding it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fm
from contract.suite.common import PATIENCE, Contract
from fm.backends.base import Backend, RunFilter
from fm.backends.stored import StoreBackend
from fm.errors import NotFound, RequestError, RunFailed, WaitTimeout
from fm.lifecycle import EventType, Fault, Status
from fm.types import Principal


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
        runs = [make(name=name, experiment_path="/lists", training_duration="1ba") for name in names]
        return [run.wait(PATIENCE) for run in runs]

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
