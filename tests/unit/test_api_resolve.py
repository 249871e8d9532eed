"""What ``model=`` means."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

import fm
from fm.backends.base import Backend
from fm.context import current
from fm.resolve import cached_hub_models, context_length_of, resolve_model
from support.rows import chats, model_folder

pytestmark = pytest.mark.usefixtures("fm_fake")


MODEL = "org/any-model"


@pytest.fixture
def backend() -> Backend:
    return current()


@pytest.fixture
def local(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:  # noqa: ARG001
    """A backend that looks hub names up, as the fake does not."""
    monkeypatch.setenv("FM_AGENT", "off")
    return current("local")


@pytest.fixture
def registered(tmp_path: Path, fm_fake: object) -> fm.Run:  # noqa: ARG001
    return fm.create(MODEL, chats(tmp_path / "d.jsonl"), "a.b.c").wait()


def cache_model(home: Path, name: str, *, revision: str = "1111", main: bool = True) -> Path:
    folder = home / ".cache/huggingface/hub" / f"models--{name.replace('/', '--')}"
    if main:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs/main").write_text(revision)
    return model_folder(folder / "snapshots" / revision)


@pytest.mark.parametrize("spelling", ["./mine", "../{}/mine", "{full}/mine", "~/mine"])
def test_a_path_is_a_path_however_it_is_spelt(
    spelling: str, isolated: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    model_folder(isolated / "mine")
    monkeypatch.chdir(isolated)
    ref = resolve_model(spelling.format(isolated.name, full=isolated), backend)
    assert ref.kind == "path"
    assert Path(str(ref.path)).resolve() == (isolated / "mine").resolve()
    assert context_length_of(ref) == 64


def test_a_path_goes_before_a_hub_name_only_when_it_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    model_folder(tmp_path / "org" / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fm.RequestError, match=r"write \./org/mine"):
        resolve_model("org/mine", backend)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "model_type"),
        ("model.safetensors", "safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_an_incomplete_folder_says_what_it_lacks_and_how_to_get_it(
    missing: str, says: str, tmp_path: Path, backend: Backend
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(fm.RequestError, match=says) as caught:
        resolve_model(str(folder), backend)
    assert "save_pretrained" in caught.value.hint
    assert caught.value.field == "model"


@pytest.mark.parametrize("config", ["", "[]", "{", '{"model_type": ""}', "\xff"])
def test_a_broken_config_is_one_clear_error(config: str, tmp_path: Path, backend: Backend) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text(config, encoding="latin-1")
    with pytest.raises(fm.RequestError, match=r"config\.json"):
        resolve_model(str(folder), backend)


def test_pickled_weights_are_refused_with_their_reason(tmp_path: Path, backend: Backend) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(fm.RequestError, match="can run code"):
        resolve_model(str(folder), backend)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_says_so(name: str, backend: Backend) -> None:
    with pytest.raises(fm.RequestError, match="does not exist"):
        resolve_model(name, backend)


def test_an_adapter_folder_is_resolved_with_its_base(tmp_path: Path, backend: Backend) -> None:
    base = model_folder(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    ref = resolve_model(str(adapter), backend)
    assert ref.adapter_of is not None
    assert (ref.path, ref.adapter_of.path) == (str(adapter), str(base))
    assert context_length_of(ref) == 64
    config.write_text(json.dumps({"base_model_name_or_path": str(adapter)}))
    with pytest.raises(fm.FMError):
        resolve_model(str(adapter), backend)


@pytest.mark.parametrize("name", ["a.b.c", "a.b.c/1", "a.b.c@prod"])
def test_a_registered_model_is_pinned_to_its_version_and_knows_its_base(
    name: str, registered: fm.Run, backend: Backend
) -> None:
    backend.models.alias("a.b.c/1", "prod")
    ref = resolve_model(name, backend)
    assert (ref.kind, ref.name) == ("registered", registered.registered_model)
    assert ref.adapter_of is not None
    assert ref.adapter_of.name == MODEL


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("a.b.d", "a.b.c"), ("fm/tinyllama", "fm/tiny-llama"), ("tiny-llama", "fm/tiny-llama")],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(name: str, suggestion: str, backend: Backend) -> None:
    with pytest.raises(fm.FMError, match=f"did you mean {suggestion}"):
        resolve_model(name, backend)


@pytest.mark.parametrize("name", ["gpt", "", "a/b/c", "a.b", "org/na me", "dbfs:/x", "s3://b/c"])
def test_what_names_no_model_says_what_can(name: str, tmp_path: Path) -> None:
    with pytest.raises(fm.FMError):
        fm.create(name, chats(tmp_path / "d.jsonl"))


def test_a_hub_name_is_found_in_the_local_cache_without_asking_anybody(isolated: Path, backend: Backend) -> None:
    snapshot = cache_model(isolated, "org/cached")
    ref = resolve_model("org/cached", backend)
    assert (ref.kind, ref.name, ref.path) == ("hub", "org/cached", str(snapshot))
    assert cached_hub_models() == {"org/cached": snapshot}
    assert "org/cached" in {model.name for model in fm.get_models()}


def test_a_broken_off_download_is_no_cached_model(isolated: Path, local: Backend) -> None:
    snapshot = cache_model(isolated, "org/partial")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(fm.Unavailable, match="HF_HUB_OFFLINE"):
        resolve_model("org/partial", local)


def test_the_main_branch_goes_before_other_snapshots(isolated: Path, local: Backend) -> None:
    main = cache_model(isolated, "org/m", revision="aaaa")
    cache_model(isolated, "org/m", revision="bbbb", main=False)
    assert resolve_model("org/m", local).path == str(main)


def test_offline_says_how_to_bring_the_model_here(local: Backend) -> None:
    with pytest.raises(fm.Unavailable, match="hf download org/absent") as caught:
        resolve_model("org/absent", local)
    assert "pass model=" in caught.value.hint


def hub_that(monkeypatch: pytest.MonkeyPatch, answers: list[Exception | None]) -> list[str]:
    """Stands in for the hub's client, which would need the internet: answers each question as listed."""
    from huggingface_hub import errors

    asked: list[str] = []

    class Api:
        def model_info(self, name: str, *, timeout: float) -> None:
            assert timeout <= 10
            asked.append(name)
            if (answer := answers[len(asked) - 1]) is not None:
                raise answer

    module = types.SimpleNamespace(HfApi=Api, errors=errors, __spec__=object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return asked


def test_a_model_that_the_hub_knows_is_taken_though_it_is_not_here(
    local: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub_that(monkeypatch, [OSError("reset"), None])
    ref = resolve_model("org/there", local)
    assert (ref.kind, ref.path, asked) == ("hub", None, ["org/there", "org/there"])


def test_a_hub_that_cannot_be_reached_is_unavailable_after_two_tries(
    local: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub_that(monkeypatch, [OSError("no route"), OSError("no route")])
    with pytest.raises(fm.Unavailable, match="no route"):
        resolve_model("org/there", local)
    assert len(asked) == 2


def test_a_name_that_no_hub_can_tell_is_compared_with_the_known_ones(local: Backend) -> None:
    with pytest.raises(fm.Unavailable, match="did you mean fm/tiny-llama"):
        resolve_model("org/tiny-llama", local)


def test_the_fake_takes_every_hub_name(backend: Backend) -> None:
    assert resolve_model("org/any", backend).kind == "hub"


def test_a_preset_cannot_be_loaded_before_it_is_trained() -> None:
    with pytest.raises(fm.RequestError, match="no weights"):
        fm.load("fm/tiny-llama")


def test_a_run_without_a_registered_model_cannot_be_loaded(tmp_path: Path) -> None:
    run = fm.create(MODEL, chats(tmp_path / "d.jsonl"))
    with pytest.raises(fm.NotFound, match="register_to"):
        fm.load(run)
