"""What tests of the server share: a request with a token, and a run that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

import fm
from fm.testing.serving import Served
from support.data import many_pairs


def ask(server: Served, method: str, path: str, *, token: str | None = None, **options: Any) -> httpx.Response:
    """An answer of the server, asked as the user "tester" if no other token is given; "" sends none."""
    token = server.token if token is None else token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= options.pop("headers", {})
    return httpx.request(method, server.url + path, headers=headers, timeout=20, trust_env=False, **options)


def ended_run(server: Served, folder: Path, **parameters: Any) -> fm.Run:
    """A run that has COMPLETED and registered `main.qa.bot`."""
    values: dict[str, Any] = {
        "model": "fm/nano-llama", "task_type": "INSTRUCTION_FINETUNE", "method": "full", "register_to": "main.qa.bot",
        "train_data_path": many_pairs(folder / "pairs.jsonl", 8), "training_duration": "3ba", **parameters,
    }
    return fm.create(backend=server.remote, **values).wait(60)
