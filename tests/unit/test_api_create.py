"""`fm.create`, `fm.validate` and `fm.rerun` over the fake."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import fm
from fm.backends.scripted import ScriptedLauncher
from fm.creation import RequestWarning
from support.rows import chats, instructions, model_folder, texts, write_jsonl

pytestmark = pytest.mark.usefixtures("fm_fake")


MODEL = "org/any-model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return chats(tmp_path / "train.jsonl")


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that trains here, but whose agent is somebody else's."""
    monkeypatch.setenv("FM_AGENT", "off")
    return "local"


def nothing_was_stored() -> bool:
    return len(fm.list()) == 0 and not Path(os.environ["FM_HOME"]).exists()


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


def test_a_short_spelling_beside_its_long_one_is_refused(data: Path) -> None:
    with pytest.raises(fm.RequestError, match="the same") as caught:
        fm.create(MODEL, data, lr=2e-4, learning_rate=1e-4)
    assert caught.value.field == "lr"


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"model": "fm/tiny-lama"}, fm.NotFound, "did you mean fm/tiny-llama"),
        ({"model": "fm/tiny-llama"}, fm.RequestError, "random weights"),
        ({"training_duration": "3 epochs"}, fm.RequestError, "not a duration"),
        ({"learning_rate": "fast"}, fm.RequestError, "not a number"),
        ({"learning_rate": -1}, fm.RequestError, "learning_rate"),
        ({"register_to": "../a.b"}, fm.RequestError, "is not a name|part"),
        ({"name": "../x"}, fm.RequestError, "can't name a run"),
        ({"task_type": "CLASSIFICATION"}, fm.RequestError, "task_type"),
        ({"model": "fm/tiny-llama", "method": "qlora"}, fm.RequestError, "random weights"),
        ({"method": "qlora", "custom_weights_path": "./w"}, fm.RequestError, "quantises weights"),
        ({"new_tokens": "<a>"}, fm.RequestError, "not a list"),
        ({"new_tokens": ["<a>", "<a>"]}, fm.RequestError, "given twice"),
        ({"new_tokens": [" a"]}, fm.RequestError, "begins or ends with a space"),
        ({"sharding": "fsdp", "num_processes": 2}, fm.RequestError, "sharding"),
        ({"sharding": "zero2"}, fm.RequestError, "sharding"),
        (
            {"sharding": "zero3", "num_processes": 2, "method": "qlora", "lora": {"use_dora": True}},
            fm.RequestError,
            "DoRA",
        ),
        ({"sharding": "zero3", "num_processes": 2, "optimizer": "adafactor"}, fm.RequestError, "optimizer"),
        ({"sharding": "full"}, fm.RequestError, "sharding"),
        ({"sharding": "full", "num_processes": 2, "optimizer": "adafactor"}, fm.RequestError, "optimizer"),
        ({"model": "fm/tiny-llama", "method": "full", "context_length": 4096}, fm.RequestError, "at most 512"),
        ({"custom_weights_path": "./nowhere"}, fm.RequestError, "does not exist"),
        ({"trackers": "mlfow"}, fm.RequestError, "trackers"),
        ({"train_data_path": "./nowhere.jsonl"}, fm.FMError, "nowhere"),
        ({"lora": {"rnak": 3}}, fm.RequestError, "rnak"),
        ({"eval_data_path": "./nowhere.jsonl"}, fm.FMError, "nowhere"),
        ({"launcher": "cloud"}, fm.RequestError, "known: process"),
        ({"backend": "lokal"}, fm.RequestError, "known: fake, local"),
    ],
)
def test_a_wrong_parameter_raises_before_anything_is_written(
    parameters: dict[str, object], error: type[fm.FMError], says: str, data: Path
) -> None:
    arguments = {"model": MODEL, "train_data_path": str(data), **parameters}
    with pytest.raises(error, match=says):
        fm.create(**arguments)  # type: ignore[arg-type]
    assert nothing_was_stored()


def test_bad_data_raises_before_anything_is_written(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}] * 30
    rows[20] = {"messages": [{"role": "user", "content": "hi"}, {"role": "boss", "content": "yo"}]}
    with pytest.raises(fm.DataError, match=r"bad\.jsonl:21"):
        fm.create(MODEL, write_jsonl(tmp_path / "bad.jsonl", rows))
    assert nothing_was_stored()


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
    assert nothing_was_stored()


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


def test_a_full_disk_is_found_before_anything_is_written(
    data: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(data.parent)
    monkeypatch.setattr("fm.examine.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(fm.DiskFull, match=r"1\.0 kB are free"):
        fm.create("fm/nano-llama", data, method="full", backend=local)
    assert fm.list(backend=local) == []


def test_a_full_training_needs_room_for_its_checkpoints(
    data: Path, tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = model_folder(tmp_path / "m")
    weights = {"w": {"dtype": "F32", "shape": [250_000_000], "data_offsets": [0, 1_000_000_000]}}
    header = json.dumps(weights).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 1_000_000_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("fm.examine.shutil.disk_usage", lambda _: usage._replace(free=5_000_000_000))
    fm.create(str(folder), data, backend=local)
    with pytest.raises(fm.DiskFull, match="keep_checkpoints"):
        fm.create(str(folder), data, method="full", backend=local)


def test_a_missing_extra_is_named_with_its_command_before_anything_is_written(
    data: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec as real

    monkeypatch.setattr("fm.plugins._FOUND", set())
    monkeypatch.setattr("fm.plugins.find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(fm.MissingExtra, match=r"pip install 'ftctl\[local\]'") as caught:
        fm.create("fm/nano-llama", data, method="full", backend=local)
    assert caught.value.extra == "local"
    assert fm.list(backend=local) == []


def test_rerun_makes_the_same_run_from_its_record_alone(data: Path) -> None:
    run = fm.create(MODEL, data, "a.b.c", seed=5).wait()
    again = fm.rerun(run.name)
    assert again != run
    assert again.record.request == run.record.request
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


def test_a_base_that_was_saved_quantised_is_refused(data: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "base", quantization_config={"quant_method": "gptq"})
    with pytest.raises(fm.RequestError, match=r"quantised already \(gptq\)"):
        fm.create(folder, data, method="qlora")
    assert nothing_was_stored()


@pytest.mark.parametrize(
    ("extra", "package", "parameters"),
    [
        ("qlora", "bitsandbytes", {"method": "qlora"}),
        ("deepspeed", "deepspeed", {"sharding": "zero2", "num_processes": 2}),
        ("deepspeed", "deepspeed", {"sharding": "zero3", "num_processes": 2}),
    ],
)
def test_what_needs_a_package_that_is_missing_is_refused_before_the_data_is_read(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch, extra: str, package: str, parameters: dict[str, Any]
) -> None:
    monkeypatch.setattr("fm.examine.require", lambda *_: None)
    monkeypatch.setattr("fm.examine.missing_from", lambda asked: (package,) if asked == extra else ())
    with pytest.raises(fm.MissingExtra, match=rf"(?s){package}.*ftctl\[{extra}\]"):
        fm.create(model_folder(tmp_path / "base"), tmp_path / "no-such.jsonl", **parameters, backend=local)


def test_a_priority_is_kept_also_by_a_rerun_and_a_resumed_run(data: Path, fm_fake: ScriptedLauncher) -> None:
    fm_fake.script = fm.testing.Script(fails_at=7)
    run = fm.create(MODEL, data, priority=10).wait(raise_on_failure=False)
    assert run.record.priority == 10
    assert fm.rerun(run).record.priority == 10
    assert run.resume().record.priority == 10
    assert fm.create(MODEL, data).record.priority == 0


@pytest.mark.parametrize("priority", [101, -101, 1.5, "10", None, True])
def test_a_priority_that_is_none_is_refused(data: Path, priority: object) -> None:
    with pytest.raises(fm.RequestError, match="priority"):
        fm.create(MODEL, data, priority=priority)  # type: ignore[arg-type]
    assert nothing_was_stored()
