"""Trainings of two processes that talk over gloo. How torchrun starts them is shown in `test_trainer_ranks`."""

from __future__ import annotations

import socket

from fm.layout import StageFolder
from support.fresh import in_fresh_processes


def run_ranks(folder: StageFolder, *, before: str = "") -> None:
    """Does the job in `folder` with two processes, each of which first executes `before`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = tuple({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    in_fresh_processes(train, folder, before, environments=ranks)


def train(folder: StageFolder, before: str) -> int:
    """Does the job in `folder` in this process, after executing `before`."""
    from fm_local.trainer.__main__ import main

    exec(before, {})
    return main(folder)
