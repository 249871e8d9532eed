"""What `fm.create` refuses before anything is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import fm
from support.data import write_jsonl
from support.rows import MODEL, model_folder

pytestmark = pytest.mark.usefixtures("fm_fake")


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that trains here, but whose agent is somebody else's."""
    monkeypatch.setenv("FM_AGENT", "off")
    return "local"


def nothing_was_stored() -> bool:
    return len(fm.list()) == 0 and not Path(os.environ["FM_HOME"]).exists()


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


def test_a_full_disk_is_found_before_anything_is_written(
    data: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data.parent)
    monkeypatch.setattr("fm.examine.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(fm.DiskFull, match=r"1\.0 kB are free"):
        fm.create("fm/nano-llama", data, method="full", backend=local)
    assert fm.list(backend=local) == []


def test_a_full_training_needs_room_for_its_checkpoints(
    data: Path, tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("priority", [101, -101, 1.5, "10", None, True])
def test_a_priority_that_is_none_is_refused(data: Path, priority: object) -> None:
    with pytest.raises(fm.RequestError, match="priority"):
        fm.create(MODEL, data, priority=priority)  # type: ignore[arg-type]
    assert nothing_was_stored()
