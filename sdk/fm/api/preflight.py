"""The verb that climbs the ladder before a training is paid for."""

from __future__ import annotations

import sys
from typing import Any

from fm.api.create import create, same_parameters, validate
from fm.context import current
from fm.display import one_line
from fm.errors import Unsupported
from fm.preflights import Preflight


@same_parameters(create)
def preflight(*args: Any, **parameters: Any) -> Preflight:
    """Tries, in some minutes, what `fm.create` would start with the same parameters, by the launcher that it would use.

    Up to the first rung that fails: (1) one batch of eight examples is to be learnt by heart, with the request's
    method, adapter and learning rate; if it isn't, others are tried until one helps. (2) Some steps with 1, 2, 4, …
    `num_processes` processes, on a cluster first on one node and then on 2, 4, … `num_nodes`: the loss falls, each
    example is taken once, all processes have the gradients of one, a checkpoint is gone on from, one process logs.
    Every training is an ordinary run, in a store of its own; nothing remains of it. Progress is shown on stderr. Ctrl-C
    ends everything that was started.

    Returns:
        What each rung found, the speeds, and what to change. It does not raise where a rung fails.

    Raises:
        What `create` raises.
        Unsupported: the backend's trainings are a server's to start.
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
    return climb(prepared, where, where.storage, _say)


def _say(text: str) -> None:
    print(f"preflight: {one_line(text)}", file=sys.stderr, flush=True)
