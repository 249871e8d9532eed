"""What a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fm
from contract.suite.common import MODEL, PATIENCE, Contract
from fm.backends.base import Backend
from fm.errors import Conflict, NotFound, RequestError


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
