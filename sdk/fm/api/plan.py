"""The verb that asks what a training would need."""

from __future__ import annotations

import inspect
from typing import Any

from fm.api.create import create
from fm.context import current
from fm.plans import Plan


def plan(
    *args: Any,
    price_per_hour: float | None = None,
    device: str | None = None,
    device_memory: float | str | None = None,
    **parameters: Any,
) -> Plan:
    """What the training that `fm.create` would start with the same parameters needs: memory, steps, time, cost.

    No weights are loaded and nothing is written: a step is traced on fake tensors, from the model's configuration.
    Beside what is asked for, all methods and shardings are compared with which the same request could be created.

    Args:
        args, parameters: those of `fm.create`.
        price_per_hour: of one device, in any currency; the plan then says the cost.
        device: a GPU to plan for, such as "H200", or "cpu". None: what this machine has.
        device_memory: bytes of one device, or text such as "24GB". None: what the device has.

    Raises:
        What `fm.create` raises for its parameters.
        Unavailable: the model's configuration is not here.
        Unsupported: a step of the model can't be traced, though it may be trained.
        RequestError: an unknown device without `device_memory`.
    """
    from fm.creation import prepare
    from fm.planning import make_plan, parse_bytes

    bound = inspect.signature(create).bind(*args, **parameters)
    bound.apply_defaults()
    given = dict(bound.arguments)
    return make_plan(
        prepare(given, current(given["backend"]), plan_only=True),
        price_per_hour=price_per_hour, device=device, device_memory=parse_bytes(device_memory),
    )
