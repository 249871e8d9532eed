"""Fresh processes that need not import torch again: forked from one that has imported it and done nothing else."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["fm.store.store", "fm_local.trainer.loop", "peft", "transformers.models.llama.modeling_llama"]
)
"""The one context: a Python process has one fork server, with one list of what it imports beforehand."""
_PATIENCE = 180


def in_fresh_processes(
    function: Callable[..., int], *arguments: Any, environments: tuple[Mapping[str, str], ...] = ({},)
) -> None:
    """Calls `function`, which returns an exit code, in one process for each of the `environments`, added to this one's,
    and waits for all. One that does not return 0 is an assertion error with what it has printed."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(number) for number in range(len(environments))]
        processes = [
            PROCESSES.Process(target=_do, args=(function, arguments, {**os.environ, **more}, log))
            for more, log in zip(environments, logs, strict=True)
        ]
        for process in processes:
            process.start()
        for process, log in zip(processes, logs, strict=True):
            process.join(_PATIENCE)
            code = process.exitcode
            if code != 0:
                for each in processes:
                    each.kill()
                raise AssertionError(f"exit code {code}\n{log.read_text()[-3000:]}")


def _do(function: Callable[..., int], arguments: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_num_threads(1)
    raise SystemExit(function(*arguments))
