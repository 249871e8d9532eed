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

PATIENCE = 90.0
_PORTS_EACH = 150


class Cluster:
    """A head and a second node. `environment` is what a client needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.dashboard, self._workers = _free_ports()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.token = secrets.token_hex(32)
        self.environment = {"FM_RAY_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.start_head()
        self.start_second()

    def start_head(self, *, alone: bool = True) -> None:
        self._start(
            "head", 0, f"--head --port={self.port} --dashboard-host=127.0.0.1 --dashboard-port={self.dashboard} "
            f"--ray-client-server-port={self._workers + 3 * _PORTS_EACH} --temp-dir={self.folder}"
        )  # fmt: skip
        if alone:
            self._wait_for_nodes(1)

    def start_second(self) -> None:
        self._start("second", 1, f"--address=127.0.0.1:{self.port}")
        self._wait_for_nodes(2)

    def kill(self, node: str) -> None:
        """Kills the "head" or the "second" node with all that runs on it, as a lost machine does."""
        for process in self.processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._nodes.pop(node).wait()

    def processes(self, node: str) -> list[psutil.Process]:
        """All processes of a node."""
        top = psutil.Process(self._nodes[node].pid)
        found = [top, *top.children(recursive=True)]
        mark = f"fm-ray-node={self.port}-{node}"
        known = {process.pid for process in found}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid not in known and process.environ().get("FM_TEST_RAY_NODE") == mark:
                    found.append(process)
        return found

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
                f"--min-worker-port={first}", f"--max-worker-port={first + _PORTS_EACH - 1}", *arguments.split(),
            ],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith(("FM_", "RAY_"))},
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])]),
                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_TMPDIR": str(self.folder),
                "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                "FM_TEST_RAY_NODE": f"fm-ray-node={self.port}-{node}",
            },
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def _wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.living_nodes() < count:
            logs = "".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"the Ray cluster did not come up: {logs}"
            time.sleep(0.2)

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


def _free_ports() -> tuple[int, int, int]:
    """Ports for the head and its dashboard, and the first of several hundred in a row; other clusters take others."""
    for base in range(20_000 + (os.getpid() % 20) * 1000, 60_000, 1000):
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("0.0.0.0", base))
            second.bind(("127.0.0.1", base + 1))
            return base, base + 1, base + 10
    raise AssertionError("no free ports")
