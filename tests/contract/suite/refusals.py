"""What no run is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fm
from contract.suite.common import Contract
from fm.backends.base import Backend, RunFilter
from fm.errors import DataError, NotFound, RequestError
from support.data import many_pairs


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
