"""From what a client asks for to what is stored: the same checks as `fm.create`, and nothing taken from the client that
decides what runs where."""

from __future__ import annotations

from fm.backends.base import NewRun
from fm.backends.stored import StoreBackend
from fm.backends.stored_files import bring_data
from fm.creation import DryRun, experiment_id
from fm.examine import ThisMachine
from fm.request import TrainRequest
from fm.types import Caller, DataRef
from fm.wire import Data, Inquiry, PlanInquiry, Submission
from fm_server.paths import find_checkpoint


def look_into(view: StoreBackend, inquiry: Inquiry) -> DryRun:
    """What `fm.validate` says, of data that need not be here."""
    data = inquiry.train_data
    known = DataRef(path="", digest=data.digest, bytes=data.bytes, rows=data.rows) if data else None
    prepared = _examine(
        view, inquiry.request, inquiry.launcher, known, plan_only=inquiry.plan_only,
        allow_oversize=inquiry.allow_oversize,
    )
    if data and not inquiry.plan_only:
        prepared.machine.admit(prepared)
    return prepared


def for_plan(view: StoreBackend, inquiry: PlanInquiry) -> DryRun:
    """What a plan is made from; its data has been sent, and is looked at here."""
    data = bring_data(view.filestore, view.files.ref(inquiry.train_data.digest))
    return _examine(view, inquiry.request, "process", data, plan_only=True)


def submit(view: StoreBackend, body: Submission) -> NewRun:
    """The run to be stored. Who asked is recorded; which interpreter trains, and with what environment, is not theirs
    to say."""
    prepared = _examine(
        view, body.request, body.launcher, _sent(view, body.train_data), model=body.model,
        allow_oversize=body.allow_oversize,
    )
    prepared.machine.admit(prepared)
    return NewRun(
        request=prepared.request,
        model=prepared.model,
        train_data=prepared.train_data,
        eval_data=_sent(view, body.eval_data) if body.eval_data else None,
        caller=Caller(user=view.principal.user, **body.caller.model_dump()),
        launcher=body.launcher,
        priority=body.priority,
        experiment_id=experiment_id(body.request.experiment_path),
        allow_oversize=body.allow_oversize,
    )


def _sent(view: StoreBackend, data: Data) -> DataRef:
    return view.files.ref(data.digest).model_copy(update={"rows": data.rows})


def _examine(
    view: StoreBackend, request: TrainRequest, launcher: str, data: DataRef | None, *, model: str | None = None,
    plan_only: bool = False, allow_oversize: bool = False,
) -> DryRun:
    changes = {"model": model or request.model}
    if request.custom_weights_path:
        changes["custom_weights_path"] = find_checkpoint(request.custom_weights_path, view)
    machine = ThisMachine(view, own_paths=False)
    checked, found = machine.examine(request.model_copy(update=changes), launcher, plan_only=plan_only)
    return DryRun(
        request=checked.model_copy(update={"model": request.model}), model=found,
        train_data=data or DataRef(path="", digest="", bytes=0), eval_data=None, backend=view.name, launcher=launcher,
        machine=machine, allow_oversize=allow_oversize,
    )
