"""`fm.create`, `fm.validate` and `fm.rerun` over the fake; what they refuse is in test_api_refused.py."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

import fm
from fm.backends.scripted import ScriptedLauncher
from fm.creation import RequestWarning
from support.data import write_jsonl
from support.rows import MODEL, chats, instructions, model_folder, texts

pytestmark = pytest.mark.usefixtures("fm_fake")


def test_create_returns_a_queued_run_with_what_was_asked_for(data: Path) -> None:
    run = fm.create(
        MODEL, data, "main.support.bot", training_duration="3ep", learning_rate="1e-4", tags={"a": "b"},
        experiment_path="/shared/qa", name="first",
    )
    assert run.status is fm.Status.QUEUED
    assert (run.name, run.model, run.register_to) == ("first", MODEL, "main.support.bot")
    assert (run.training_duration, run.learning_rate, run.tags) == ("3ep", 1e-4, {"a": "b"})
    assert run.record.train_data.rows == 20
    assert run.train_data_path == str(data)


@pytest.mark.parametrize(
    ("task", "make"),
    [("CHAT_COMPLETION", chats), ("INSTRUCTION_FINETUNE", instructions), ("CONTINUED_PRETRAIN", texts)],
)
def test_each_task_type_runs_to_its_registered_model(task: str, make: object, tmp_path: Path) -> None:
    path = make(tmp_path / ("data" if task == "CONTINUED_PRETRAIN" else "data.jsonl"))  # type: ignore[operator]
    run = fm.create(MODEL, path, "a.b.c", task_type=task.lower()).wait()
    assert (run.status, run.registered_model) == (fm.Status.COMPLETED, "a.b.c/1")


def test_short_spellings_mean_the_long_ones(data: Path) -> None:
    run = fm.create(MODEL, data, duration="45m", lr=2e-4)
    assert (run.training_duration, run.learning_rate) == ("45m", 2e-4)


def test_validate_inputs_false_takes_the_digest_and_no_more(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", [{"nonsense": 1}])
    plan = fm.validate(MODEL, path, validate_inputs=False)
    assert (plan.rows, plan.bytes, len(plan.digest)) == (None, path.stat().st_size, 64)


def test_a_dry_run_says_what_a_run_would_be_made_from_and_writes_nothing(data: Path) -> None:
    plan = fm.create(MODEL, data, "a.b.c", dry_run=True)
    assert isinstance(plan, fm.DryRun)
    assert plan == fm.validate(MODEL, data, "a.b.c")
    assert (plan.rows, plan.model.kind, plan.backend) == (20, "hub", "fake")
    assert "20 rows" in str(plan)
    assert fm.list() == [] and not Path(os.environ["FM_HOME"]).exists()


def test_a_dry_run_finds_the_digest_that_the_run_then_records(data: Path) -> None:
    assert fm.validate(MODEL, data).digest == fm.create(MODEL, data).record.train_data.digest


@pytest.mark.parametrize(("method", "rate"), [("lora", 5e-7), ("lora", "0.1"), ("full", 1e-9), ("full", 0.5)])
def test_a_rate_far_outside_what_is_known_to_work_is_warned_about_and_used(
    method: str, rate: float, data: Path
) -> None:
    with pytest.warns(RequestWarning, match="learning_rate") as caught:
        run = fm.create(MODEL, data, learning_rate=rate, method=method)  # type: ignore[arg-type]
    assert run.learning_rate == float(rate)
    assert caught[0].filename == __file__


def test_a_known_rate_is_not_warned_about(data: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fm.create(MODEL, data, learning_rate=2e-4)
        fm.create(MODEL, data, learning_rate="5e-7", method="full")


def test_data_prep_cluster_id_is_accepted_with_a_warning(data: Path) -> None:
    with pytest.warns(RequestWarning, match="data_prep_cluster_id is ignored"):
        fm.create(MODEL, data, data_prep_cluster_id="0123-abc")


def test_the_same_idempotency_key_makes_one_run(data: Path) -> None:
    first = fm.create(MODEL, data, idempotency_key="k")
    assert fm.create(MODEL, data, idempotency_key="k") == first
    assert fm.create(MODEL, data) != first


def test_a_checkpoint_can_be_passed_on_as_weights(data: Path) -> None:
    run = fm.create(MODEL, data).wait()
    last = fm.get_checkpoints(run)[-1]
    assert fm.create(MODEL, data, custom_weights_path=last).custom_weights_path == last.path


def test_a_model_folder_given_as_a_path_object_is_a_path(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "org" / "mine")
    monkeypatch.chdir(tmp_path)
    run = fm.create(Path("org/mine"), data)
    assert run.record.model.kind == "path"


def test_runs_for_a_cluster_follow_the_script_as_well(data: Path) -> None:
    assert fm.create(MODEL, data, launcher="ray", num_nodes=2).wait().status is fm.Status.COMPLETED


def test_rerun_makes_the_same_run_from_its_record_alone(data: Path) -> None:
    run = fm.create(MODEL, data, "a.b.c", seed=5, priority=2, allow_oversize=True).wait()
    again = fm.rerun(run.name)
    assert again != run
    assert again.record.request == run.record.request
    assert (again.record.priority, again.record.allow_oversize) == (2, True)
    assert again.wait().registered_model == "a.b.c/2"


def test_rerun_refuses_changed_data(data: Path) -> None:
    run = fm.create(MODEL, data)
    chats(data, 21)
    with pytest.raises(fm.DataChanged, match=r"train\.jsonl"):
        fm.rerun(run)


def test_runs_of_one_experiment_share_its_id_and_others_have_their_own(data: Path) -> None:
    first, second = (fm.create(MODEL, data, experiment_path="/shared/qa") for _ in range(2))
    alone = fm.create(MODEL, data)
    assert first.experiment_id == second.experiment_id != alone.experiment_id
    assert set(fm.list(experiment_id=first.experiment_id)) == {first, second}
    assert fm.list(experiment_id=alone.experiment_id) == [alone]


def test_the_caller_is_recorded_without_secrets(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org")
    caller = fm.create(MODEL, data).record.caller
    assert "secret" not in caller.model_dump_json()
    assert caller.env["OMP_NUM_THREADS"] == "2"
    assert caller.packages["ftctl"] == fm.__version__
    assert Path(caller.python).exists()
    assert caller.cwd == str(Path.cwd())


def test_a_failed_run_says_why_and_who_has_to_act(data: Path, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(fails_at=3, failure="loss is not finite")
    run = fm.create(MODEL, data)
    with pytest.raises(fm.RunFailed, match="loss is not finite") as caught:
        run.wait()
    assert (caught.value.run, caught.value.fault) == (run, "user")
    assert run.wait(raise_on_failure=False).status is fm.Status.FAILED


def test_a_priority_is_kept_also_by_a_rerun_and_a_resumed_run(data: Path, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(fails_at=7)
    run = fm.create(MODEL, data, priority=10).wait(raise_on_failure=False)
    assert run.record.priority == 10
    assert fm.rerun(run).record.priority == 10
    assert run.resume().record.priority == 10
    assert fm.create(MODEL, data).record.priority == 0
