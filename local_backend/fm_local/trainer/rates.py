"""Learning rates: the default for a method and a size, and what lies far outside the known range.

Sources: "LoRA without regret" (Thinking Machines, 2025): LoRA's best rate is about ten times that of full fine-tuning
and hardly depends on rank; published recipes for 1B to 70B.
"""

from __future__ import annotations

from fm.rates import KNOWN_RATES
from fm.request import Method

_LORA_BY_SIZE = ((0.5e9, 2e-3), (4e9, 1e-3), (float("inf"), 3e-4))
"""(parameters below, rate)."""
_FROM_RANDOM = 3e-3


def default_rate(method: Method, parameters: int, *, random_weights: bool) -> float:
    """Peak rate for a model of `parameters` (all of them, not only the trained ones). QLoRA's is LoRA's."""
    if random_weights:
        return _FROM_RANDOM
    lora = next(rate for below, rate in _LORA_BY_SIZE if parameters < below)
    return lora / 10 if method == "full" else lora


def rate_warning(rate: float, method: Method, usual: float, *, random_weights: bool) -> str | None:
    """What to tell someone who gave `rate` where `usual` is the default, if it is far outside the known range."""
    low, high = KNOWN_RATES["random" if random_weights else method]
    if low <= rate <= high:
        return None
    effect = "will hardly learn anything" if rate < low else "may break down"
    hint = " (5e-7 and the like are rates for method='full')" if method != "full" and rate < low else ""
    return (
        f"learning_rate {rate:g} is far outside the known range for method={method!r}, {low:g} to {high:g}: "
        f"the model {effect}{hint}; leave learning_rate out for {usual:g}"
    )
