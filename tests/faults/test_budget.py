"""A wall-clock budget is kept: a finished, registered model exists when it falls. `make prove` runs ten of 60 s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fm.backends.stored import StoreBackend
from support.budgets import is_kept, run_with_budget
from support.data import many_pairs
from support.local import local_backend


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreBackend]:
    with local_backend(tmp_path_factory.mktemp("budget")) as backend:
        yield backend


@pytest.mark.parametrize(("seconds", "kill_after"), [(20, None), (30, 12.0)])
def test_a_model_is_registered_when_the_budget_falls_also_after_a_kill(
    seconds: int, kill_after: float | None, backend: StoreBackend, tmp_path: Path
) -> None:
    data = many_pairs(tmp_path / "pairs.jsonl", 256)
    outcome = run_with_budget(
        backend,
        backend.storage.root,
        seconds=seconds,
        kill_after=kill_after,
        patience=90,
        model="fm/nano-llama",
        train_data_path=str(data),
        eval_data_path=str(data),
        task_type="INSTRUCTION_FINETUNE",
        method="full",
        learning_rate=1e-3,
    )
    assert is_kept(outcome, seconds=seconds), outcome
    assert outcome.attempts == (1 if kill_after is None else 2)
    assert outcome.running_seconds > 0.7 * seconds, "most of the budget is used"
