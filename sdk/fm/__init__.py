"""Fine-tuning that you own: ``fm.create(...)`` trains a language model on this machine.

Names are looked up when they are first used, so that ``import fm`` costs next to nothing and loads none of the
libraries below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm import testing as testing
    from fm.api.create import create as create
    from fm.api.create import rerun as rerun
    from fm.api.create import validate as validate
    from fm.api.models import get_models as get_models
    from fm.api.models import load as load
    from fm.api.plan import plan as plan
    from fm.api.preflight import preflight as preflight
    from fm.api.runs import cancel as cancel
    from fm.api.runs import delete as delete
    from fm.api.runs import get as get
    from fm.api.runs import get_checkpoints as get_checkpoints
    from fm.api.runs import get_events as get_events
    from fm.api.runs import list as list  # noqa: A004 - the reference's name
    from fm.api.runs import wait as wait
    from fm.context import backend as backend
    from fm.creation import DryRun as DryRun
    from fm.creation import RequestWarning as RequestWarning
    from fm.duration import Duration as Duration
    from fm.errors import Conflict as Conflict
    from fm.errors import Damaged as Damaged
    from fm.errors import DataChanged as DataChanged
    from fm.errors import DataError as DataError
    from fm.errors import DataFault as DataFault
    from fm.errors import DiskFull as DiskFull
    from fm.errors import FMError as FMError
    from fm.errors import Forbidden as Forbidden
    from fm.errors import HomeError as HomeError
    from fm.errors import LeaseLost as LeaseLost
    from fm.errors import MissingExtra as MissingExtra
    from fm.errors import NotFound as NotFound
    from fm.errors import RequestError as RequestError
    from fm.errors import RunFailed as RunFailed
    from fm.errors import RunStopped as RunStopped
    from fm.errors import StoreError as StoreError
    from fm.errors import Unauthorised as Unauthorised
    from fm.errors import Unavailable as Unavailable
    from fm.errors import Unsupported as Unsupported
    from fm.errors import WaitTimeout as WaitTimeout
    from fm.lifecycle import EventType as EventType
    from fm.lifecycle import Status as Status
    from fm.plans import Memory as Memory
    from fm.plans import Plan as Plan
    from fm.plans import PlanOption as PlanOption
    from fm.preflights import Check as Check
    from fm.preflights import Preflight as Preflight
    from fm.preflights import Rung as Rung
    from fm.preflights import Trial as Trial
    from fm.request import LoraConfig as LoraConfig
    from fm.request import TaskType as TaskType
    from fm.run import Run as Run

__version__ = "0.1.0"

_ERRORS = (
    "Conflict Damaged DataChanged DataError DataFault DiskFull FMError Forbidden HomeError LeaseLost MissingExtra "
    "NotFound RequestError RunFailed RunStopped StoreError Unauthorised Unavailable Unsupported WaitTimeout"
)
_WHERE = {
    "fm.api.create": "create rerun validate",
    "fm.api.models": "get_models load",
    "fm.api.plan": "plan",
    "fm.api.preflight": "preflight",
    "fm.api.runs": "cancel delete get get_checkpoints get_events list wait",
    "fm.context": "backend",
    "fm.creation": "DryRun RequestWarning",
    "fm.duration": "Duration",
    "fm.errors": _ERRORS,
    "fm.lifecycle": "EventType Status",
    "fm.plans": "Memory Plan PlanOption",
    "fm.preflights": "Check Preflight Rung Trial",
    "fm.run": "Run",
    "fm.request": "LoraConfig TaskType",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [
    "Check",
    "Conflict",
    "Damaged",
    "DataChanged",
    "DataError",
    "DataFault",
    "DiskFull",
    "DryRun",
    "Duration",
    "EventType",
    "FMError",
    "Forbidden",
    "HomeError",
    "LeaseLost",
    "LoraConfig",
    "Memory",
    "MissingExtra",
    "NotFound",
    "Plan",
    "PlanOption",
    "Preflight",
    "RequestError",
    "RequestWarning",
    "Run",
    "RunFailed",
    "RunStopped",
    "Rung",
    "Status",
    "StoreError",
    "TaskType",
    "Trial",
    "Unauthorised",
    "Unavailable",
    "Unsupported",
    "WaitTimeout",
    "__version__",
    "backend",
    "cancel",
    "create",
    "delete",
    "get",
    "get_checkpoints",
    "get_events",
    "get_models",
    "list",
    "load",
    "plan",
    "preflight",
    "rerun",
    "testing",
    "validate",
    "wait",
]

if not TYPE_CHECKING:  # else a type checker would accept every name

    def __getattr__(name: str) -> Any:
        import importlib

        if name == "testing":
            return importlib.import_module("fm.testing")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'fm' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
