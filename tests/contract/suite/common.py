"""What the parts of the contract share: how a test makes a run, one that has completed, and one that was stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fm
from fm.backends.base import Backend
from support.data import many_pairs
from support.waiting import until

MODEL = "fm/nano-llama"
PATIENCE = 120.0


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
        until(
            lambda: run.refresh().record.checkpoint_step is not None, "a checkpoint", seconds=PATIENCE,
            every=backend.poll_seconds,
        )  # fmt: skip
        run.cancel(reason="seen enough")
        return run.wait(PATIENCE, raise_on_failure=False)
