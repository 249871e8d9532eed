"""What a request asks of a cluster, what the cluster has, and how many processes of the request fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fm.errors import RequestError
from fm.ray.cluster import Node, RayCluster
from fm.request import TrainRequest

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Ask:
    """What the processes of a request need: `per_node` of them on each of `nodes` nodes, each with `each`."""

    nodes: int
    per_node: int
    each: dict[str, float]
    """For one process, by Ray's names; memory in bytes."""

    @classmethod
    def of(cls, request: TrainRequest, cluster: Sequence[Node]) -> Self:
        """What `request` asks for of this cluster."""
        gpus = gpus_each(request, cluster)
        each = {"CPU": float(request.process_cpus)}
        each |= {"GPU": float(gpus)} if gpus else {}
        each |= {"memory": request.process_memory * _GIB} if request.process_memory else {}
        return cls(request.num_nodes, request.num_processes // request.num_nodes, each)

    def wide(self, nodes: int) -> Self:
        """The same on another number of nodes."""
        return type(self)(nodes, self.per_node, self.each)

    def fitting(self, cluster: Sequence[Node]) -> list[Node]:
        """The nodes that have room for `per_node` processes, when nothing else runs."""
        needed = {name: self.per_node * amount for name, amount in self.each.items()}
        return [
            node for node in cluster
            if all(node.resources.get(name, 0.0) >= amount for name, amount in needed.items())
        ]  # fmt: skip

    def __str__(self) -> str:
        each = ", ".join(_amount(name, amount) for name, amount in self.each.items())
        count = self.nodes * self.per_node
        where = f"{self.per_node} on each of {self.nodes} nodes" if self.nodes > 1 else "on one node"
        return f"{count} {'processes' if count > 1 else 'process'} with {each} each, {where}"


def gpus_each(request: TrainRequest, cluster: Sequence[Node]) -> int:
    """GPUs for each process: where the request says nothing of them, one if the cluster has any."""
    if request.process_gpus is not None:
        return request.process_gpus
    return int(any(node.resources.get("GPU") for node in cluster))


def describe(cluster: Sequence[Node]) -> str:
    """What the nodes have, in words."""
    kinds = [
        ", ".join(_amount(name, node.resources.get(name, 0.0)) for name in ("CPU", "GPU", "memory"))
        for node in cluster
    ]
    counted = "; ".join(f"{kinds.count(kind)} with {kind}" for kind in dict.fromkeys(kinds))
    return f"{len(cluster)} {'node' if len(cluster) == 1 else 'nodes'}: {counted}" if cluster else "no living node"


def place(request: TrainRequest, cluster: Sequence[Node]) -> Ask | None:
    """What to start now: all that is asked for or, where the request allows it, as much of it as fits; None if it does
    not fit the nodes that there are."""
    ask = Ask.of(request, cluster)
    room = min(len(ask.fitting(cluster)), ask.nodes)
    if room == ask.nodes:
        return ask
    enough = request.min_processes is not None and room * ask.per_node >= request.min_processes
    return ask.wide(room) if enough else None


def no_room(request: TrainRequest, cluster: Sequence[Node]) -> str:
    """Why `place` found no place."""
    asked, has = Ask.of(request, cluster), describe(cluster)
    return f"the Ray cluster has no room for this run: it asks for {asked}; the cluster has {has}"


def admit(request: TrainRequest, *, allow_oversize: bool) -> None:
    """Refuses, before a run is made, what the cluster of FM_RAY_ADDRESS can't run. With `allow_oversize` it need not
    have the nodes yet, as one that grows when it is asked.

    Raises:
        RequestError: no cluster is named, or it has too little of what is asked for.
        Unavailable, Unauthorised, Unsupported: it can't be reached, refuses the token, or is too old.
    """
    cluster = RayCluster.of_environment()
    cluster.check_version()
    nodes = cluster.nodes()
    if place(request, nodes) is None and not allow_oversize:
        raise RequestError(
            no_room(request, nodes),
            field="num_nodes",
            hint="ask for less (num_processes, num_nodes, process_gpus, process_cpus, process_memory), or add nodes; "
            "allow_oversize=True queues it until there are as many",
        )


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / _GIB:.1f} GiB of memory"
    return f"{amount:g} {name}"
