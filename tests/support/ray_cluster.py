"""A real Ray cluster of two nodes on this machine, with token authentication, and its parts to be killed one by one."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

PATIENCE = 300.0
"""Seconds that a cluster gets to come up. Generous, for machines with other work: on a quiet one it takes ten."""
_PORTS_EACH = 150


class Cluster:
    """A head and a second node. `environment` is what a client needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # All are named: where several nodes are on one machine, each of Ray's default ports is only the first's. A node
        # whose job agent finds its port taken says nothing, and answers every job with "No available agent".
        self.port = _free_ports()
        self.dashboard, self._agents, self._workers = self.port + 1, self.port + 2, self.port + 10
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.token = secrets.token_hex(32)
        self.environment = {"FM_RAY_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.start_head()
        self.start_second()

    def start_head(self) -> None:
        self._start(
            "head", 0, f"--head --port={self.port} --dashboard-host=127.0.0.1 --dashboard-port={self.dashboard} "
            f"--ray-client-server-port={self._workers + 3 * _PORTS_EACH} --temp-dir={self.folder}"
        )  # fmt: skip
        self._wait_for("head", 0)

    def start_second(self) -> None:
        self._start("second", 1, f"--address=127.0.0.1:{self.port}")
        self._wait_for("second", 1)

    def kill(self, node: str) -> None:
        """Kills the "head" or the "second" node with all that runs on it, as a lost machine does."""
        while found := self.processes(node):
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=1)  # what one of them has just started is found the next time
        self._nodes.pop(node).wait()
        if node == "head":  # `ray start` would take the second node, which outlives it here, for a sign that it runs
            (self.folder / "ray_current_cluster").unlink(missing_ok=True)

    def processes(self, node: str) -> list[psutil.Process]:
        """All processes of a node: they inherit its mark, which those that give themselves a title may write over."""
        found, mark = set(), self._mark(node)
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("FM_TEST_RAY_NODE") == mark:
                    found |= {process, *process.children()}
        return list(found)

    def workers(self) -> dict[str, list[psutil.Process]]:
        """The processes that train, by node."""
        return {node: [each for each in self.processes(node) if _trains(each)] for node in self._nodes}

    def stop(self) -> None:
        for node in list(self._nodes):
            self.kill(node)

    def _start(self, node: str, number: int, arguments: str) -> None:
        first = self._workers + number * _PORTS_EACH
        log = (self.folder / f"{node}.log").open("ab")
        self._nodes[node] = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
                "--num-cpus=2", "--num-gpus=0", "--object-store-memory=80000000",
                f"--dashboard-agent-listen-port={self._agents + number}",
                f"--min-worker-port={first}", f"--max-worker-port={first + _PORTS_EACH - 1}", *arguments.split(),
            ],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith(("FM_", "RAY_"))},
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])]),
                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_TMPDIR": str(self.folder),
                "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                "FM_TEST_RAY_NODE": self._mark(node),
            },
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def _mark(self, node: str) -> str:
        return f"{self.folder}-{node}"

    def _wait_for(self, node: str, number: int) -> None:
        """Waits until the node belongs to the cluster and its job agent answers."""
        deadline = time.monotonic() + PATIENCE
        while not (self._agent_answers(number) and self.living_nodes() > number):
            log = (self.folder / f"{node}.log").read_text()[-2000:]
            assert self._nodes[node].poll() is None, f"the {node} node has ended: {log}"
            assert time.monotonic() < deadline, f"the {node} node did not come up: {log}"
            time.sleep(0.2)

    def _agent_answers(self, number: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._agents + number}/api/local_raylet_healthz").is_success
        except httpx.HTTPError:
            return False

    def living_nodes(self) -> int:
        """How many nodes the cluster itself believes to be alive; 0 while nobody answers."""
        from fm.errors import Unavailable
        from fm.ray.cluster import RayCluster

        try:
            return len(RayCluster(self.address, self.token).nodes())
        except (Unavailable, httpx.HTTPError):
            return 0


def _trains(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie
        return False


@contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A cluster of two nodes with two CPUs each; on leaving, all of its processes are killed."""
    # Ray's sockets lie below this folder, and the paths of sockets may not be long.
    folder = Path(tempfile.mkdtemp(prefix="fmr"))
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports() -> int:
    """The first of several hundred ports in a row, below those that the system gives to anybody; clusters of other
    processes begin elsewhere."""
    for number in range(12):
        base = 20_000 + (os.getpid() + number) % 12 * 1000
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("0.0.0.0", base))
            second.bind(("127.0.0.1", base + 1))
            return base
    raise AssertionError("no free ports")
