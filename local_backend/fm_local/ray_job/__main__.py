"""``python -m fm_local.ray_job <stage> <folder> <version> <nodes> <per node> <each>``: the entry point of a Ray job.

It does the check itself, and leaves the training to workers of Ray Train. Exit codes: those of the stage, and 78 if it
can't be begun here; a line that begins with "ftctl: " then says why.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import fm
from fm.agent.processes import noted_exit
from fm.errors import DiskFull
from fm.job import EXIT_DISK_FULL, EXIT_LOST, EXIT_STOPPED, Job, Reporter
from fm.layout import StageFolder
from fm.lifecycle import EventType, Fault
from fm.ray.cluster import Node
from fm.ray.placing import Ask, place
from fm.request import TrainRequest
from fm_local.ray_job.fence import is_over
from fm_local.ray_job.rank import SHARE, Misplaced

EXIT_MISFIT = 78
_PATIENCE = 30.0
"""Seconds after which a job that has no place yet says so."""
_FAREWELL = 20.0
"""Seconds that Ray gets to end a training's workers once the first has ended."""


def main(stage: str, folder: StageFolder, version: str, nodes: int, per_node: int, each: dict[str, float]) -> int:
    """Does the stage; returns the exit code."""
    if version != fm.__version__:
        print(f"ftctl: the Ray cluster has ftctl {fm.__version__}, and the run was started by {version}: install the "
              "same on both (FM_RAY_ENV can name it)")
        return EXIT_MISFIT
    if not folder.job.exists():
        print(f"ftctl: {folder.path} is not there on the Ray cluster's node {os.uname().nodename}: {SHARE}")
        return EXIT_MISFIT
    request = Job.read(folder).request
    try:
        # Only one job begins what lies in a folder: a head that forgot it was handed the first is handed a second.
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    except FileExistsError:
        return EXIT_STOPPED
    if is_over(folder):
        return EXIT_STOPPED
    os.dup2(log, 1)
    os.dup2(log, 2)
    if stage == "check":
        os.execv(sys.executable, [sys.executable, "-m", "fm_local.prepare", str(folder.path)])
    print(f"Ray job with {per_node} processes on each of {nodes} nodes", flush=True)
    return _train(folder, request, Ask(nodes, per_node, each))


def _train(folder: StageFolder, request: TrainRequest, ask: Ask) -> int:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from fm_local.ray_job.rank import train

    threading.Thread(target=_watch, args=(folder,), daemon=True).start()
    ray.init(logging_level=logging.WARNING)
    here = ask.fitting(_living_nodes())[: ask.nodes]
    if len(here) < ask.nodes:
        print(f"of {ask.nodes} nodes {len(here)} are left", flush=True)
        return EXIT_LOST
    named = _placement(here, ask.per_node)
    needed = {node.id for node in here} if "label_selector" in named else set()
    settled = request.model_copy(update={"process_gpus": int(ask.each.get("GPU", 0))})
    threading.Thread(target=_wait_for_place, args=(folder, settled, ask, needed), daemon=True).start()
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": str(folder.path)},
        scaling_config=ScalingConfig(
            num_workers=ask.nodes * ask.per_node,
            use_gpu=ask.each.get("GPU", 0) > 0,
            resources_per_worker=ask.each,
            **named,
        ),
        # A worker that is lost ends the attempt. The agent starts the next, which is the one way to go on.
        run_config=RunConfig(storage_path=str(folder.ray), name="train", failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, Misplaced):
                return _misfit(folder, str(failure))
        time.sleep(1.5)  # what the workers printed last is on its way here
        return noted_exit(folder) or EXIT_LOST
    return noted_exit(folder) or 0


def _misfit(folder: StageFolder, why: str) -> int:
    """Says why no attempt on these nodes could do better."""
    with closing(Reporter(folder)) as reporter:
        reporter.event(EventType.FAILED, why, fault=Fault.INFRASTRUCTURE.value, exit_code=EXIT_MISFIT)
    return EXIT_MISFIT


def _placement(nodes: list[Node], per_node: int) -> dict[str, Any]:
    """How Ray is told to put `per_node` processes on each of as many nodes."""
    if len(nodes) == 1:
        return {"placement_strategy": "STRICT_PACK"}
    if per_node == 1:
        return {"placement_strategy": "STRICT_SPREAD"}
    # No strategy of Ray's says "so many on each": the nodes are named.
    return {"label_selector": [{"ray.io/node-id": node.id} for node in nodes for _ in range(per_node)]}


def _watch(folder: StageFolder) -> None:
    """Ends this process once its attempt is over, whatever Ray does: it outlives a head that is lost."""
    while not is_over(folder):
        time.sleep(1)
        if (code := noted_exit(folder)) is not None:
            time.sleep(_FAREWELL)
            os._exit(code)
    os._exit(EXIT_STOPPED)


def _wait_for_place(folder: StageFolder, request: TrainRequest, ask: Ask, needed: set[str]) -> None:
    """Shows that the job lives until its first worker does, and says once what it waits for. Ends the attempt if it
    waits in vain: for one of the nodes `needed` that is gone, or for more nodes than are left, where the request allows
    it to go on with fewer."""
    told = time.monotonic() + _PATIENCE
    while True:
        try:
            with closing(Reporter(folder)) as reporter:
                reporter.pause("waiting", 60.0)
                while not folder.process.exists():
                    reporter.sign()
                    _end_if_in_vain(request, ask, needed)
                    if time.monotonic() > told:
                        told = math.inf
                        reporter.event(EventType.WARNING, _waits_for(ask), waits_for="cluster")
                    time.sleep(1)
            return
        except DiskFull as error:
            # Without its signs the agent would take it for dead while it waits on, and begin another beside it.
            _end(str(error), EXIT_DISK_FULL)
        except Exception as error:  # the head or a network's disk may be away for a moment; if for long, see the agent
            print(f"{type(error).__name__}: {error}", flush=True)
            time.sleep(1)


def _end_if_in_vain(request: TrainRequest, ask: Ask, needed: set[str]) -> None:
    living = _living_nodes()
    if gone := needed - {node.id for node in living}:
        _end(f"gone before the training began: {', '.join(sorted(gone))}", EXIT_LOST)
    if (now := place(request, living)) and now.nodes < ask.nodes:
        _end(f"of {ask.nodes} nodes {now.nodes} are left", EXIT_LOST)


def _end(why: str, code: int) -> NoReturn:
    print(why, flush=True)
    os._exit(code)


def _waits_for(ask: Ask) -> str:
    import ray

    left = ray.available_resources()  # type: ignore[no-untyped-call]
    free = {name: left.get(name, 0.0) for name in ("CPU", "GPU", "memory")}
    return f"waits for room on the Ray cluster: asks for {ask}; free are {free}"


def _living_nodes() -> list[Node]:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [Node(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]


if __name__ == "__main__":
    stage, path, version, nodes, per_node, each = sys.argv[1:]
    sys.exit(main(stage, StageFolder(Path(path)), version, int(nodes), int(per_node), json.loads(each)))
