"""The verb that climbs the ladder before a training is paid for."""

from __future__ import annotations

import sys
from typing import Any

from fm.api.create import create, same_parameters, validate
from fm.context import current
from fm.display import one_line
from fm.errors import Unsupported
from fm.preflights import Preflight
from fm.types import CLUSTER_LAUNCHER


@same_parameters(create)
def preflight(*args: Any, **parameters: Any) -> Preflight:
    """Tries on this machine, in some minutes, what `fm.create` would start with the same parameters.

    Up to the first rung that fails: (1) one batch of eight examples is to be learnt by heart, with the request's
    method, adapter and learning rate; if it isn't, others are tried until one helps. (2) Some steps with 1, 2, 4, …
    `num_processes` processes: the loss falls, each example is taken once, all processes have the gradients of one, a
    checkpoint is gone on from, one process logs. Every training is an ordinary run, in a store of its own; nothing
    remains of it. Progress is shown on stderr. Ctrl-C ends everything that was started.

    Returns:
        What each rung found, the speeds, and what to change. It does not raise where a rung fails.

    Raises:
        What `create` raises.
        Unsupported: the backend, or the launcher, does not train on this machine.
    """
    from fm.ladder.climbing import climb

    where = current(parameters.get("backend"))
    if not where.trains_here or where.storage is None:
        raise Unsupported(
            f"backend {where.name!r} does not train on this machine",
            field="backend",
            hint='run the preflight on the machine that trains, with backend="local"',
        )
    prepared = validate(*args, **parameters)
    if prepared.launcher == CLUSTER_LAUNCHER:
        raise Unsupported(
            "a preflight climbs with processes of this machine",
            field="launcher",
            hint="leave launcher out: what it finds of model, data and learning rate holds on a cluster too",
        )
    return climb(prepared, where, where.storage, _say)


def _say(text: str) -> None:
    print(f"preflight: {one_line(text)}", file=sys.stderr, flush=True)
