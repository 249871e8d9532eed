"""How wide the rungs are: 1, 2, 4, … processes of one machine; on a cluster, then on 2, 4, … of its nodes."""

from __future__ import annotations

from typing import NamedTuple

from fm.agent.devices import Devices
from fm.creation import DryRun
from fm.ladder.ground import with_request
from fm.ray.cluster import RayCluster
from fm.ray.placing import no_room, place
from fm.request import TrainRequest
from fm.types import CLUSTER_LAUNCHER


class Width(NamedTuple):
    """So many processes, as many on each of the nodes."""

    processes: int
    nodes: int

    def __str__(self) -> str:
        text = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{text} on {self.nodes} nodes" if self.nodes > 1 else text


def widths(request: TrainRequest) -> list[Width]:
    """As many processes as a node gets, doubling; then as many nodes as are asked for, doubling."""
    each = request.num_processes // request.num_nodes
    one_node = [Width(processes, 1) for processes in _doubling(each)]
    return one_node + [Width(each * nodes, nodes) for nodes in _doubling(request.num_nodes) if nodes > 1]


def on(width: Width, prepared: DryRun) -> DryRun:
    """`prepared` with so many processes."""
    sharding = prepared.request.sharding if width.processes > 1 else "none"
    return with_request(prepared, num_processes=width.processes, num_nodes=width.nodes, sharding=sharding)


def too_wide(prepared: DryRun) -> str:
    """Why the place of the trainings has no room for the request's processes; empty if it has.

    Raises:
        Unavailable, Unauthorised: the cluster can't be asked.
    """
    request = prepared.request
    if prepared.launcher == CLUSTER_LAUNCHER:
        nodes = RayCluster.of_environment().nodes()
        return no_room(request, nodes) if place(request, nodes) is None else ""
    most = Devices.of_this_machine().total
    return f"this machine has {most} GPU{'s' * (most > 1)}" if request.num_processes > most else ""


def _doubling(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
