"""Asking before a run is made: can it be trained here, and what would it need?"""

from __future__ import annotations

from fastapi import Response

from fm.planning import make_plan
from fm.plans import Plan
from fm.wire import PREFIX, Examined, Inquiry, PlanInquiry
from fm_server import submission
from fm_server.answers import answer
from fm_server.routes import Hidden, Mine, make_router

router = make_router("training")


@router.post(f"{PREFIX}/validate", response_model=Examined)
def validate(inquiry: Inquiry, mine: Mine, paths: Hidden) -> Response:
    """Resolves the model and makes every check that needs no look into the data. Writes nothing."""
    model = submission.look_into(mine, inquiry).model
    return answer(Examined(request=inquiry.request, model=paths.model(model)))


@router.post(f"{PREFIX}/plan", response_model=Plan)
def plan(inquiry: PlanInquiry, mine: Mine) -> Response:
    """Memory, steps, time and cost of a training on data that has been sent. Nothing is trained."""
    return answer(
        make_plan(
            submission.for_plan(mine, inquiry), price_per_hour=inquiry.price_per_hour, device=inquiry.device,
            device_memory=inquiry.device_memory,
        )
    )
