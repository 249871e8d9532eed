"""Telling trouble from noise in the losses of optimiser steps.

A rule by ranks, since losses are anything but normally distributed: a run of steps is a spike if nearly all of them lie
above nearly all that went before, and by more than the noise. A single high loss is no alarm: one odd batch does no
harm once its gradient is clipped, and losses near zero with rare high ones are what a nearly learnt set looks like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RUN = 8
"""Steps that are looked at together."""
_REFERENCE = 24
"""Steps before them that they are compared with: few, since a falling loss hides a spike behind its own past, and no
trend may be taken away (losses flatten, so a trend continued is soon below them)."""
HISTORY = RUN + _REFERENCE
_DEVIATIONS = 2.0
"""How far the run's mean must lie above the reference's median, in standard deviations of a step."""
_LEAST_RISE = 0.05
"""Nats; a smaller rise harms nobody, whatever the noise."""


def has_spiked(losses: Sequence[float]) -> bool:
    """Whether the last `RUN` of `losses`, of consecutive steps, are a spike. Only the last `HISTORY` are looked at.

    In losses without a trend, whatever their distribution, chance gives an alarm in at most 8 of 100,000 steps: so many
    of the orders of 32 values have seven of eight above all but two of the others. With the second condition it is 2 of
    100,000 in normally distributed ones, and still 8 in log-normal ones (`benchmarks/prove.py alarms`). Stricter rules
    find fewer rises: all of ten above all but two gives 5 in 10 million, and finds 88 of 100 where this finds 99.
    """
    reference, run = np.array(losses[-HISTORY:-RUN]), np.array(losses[-RUN:])
    if len(reference) < _REFERENCE or int((run > np.sort(reference)[-3]).sum()) < RUN - 1:
        return False
    middle = np.median(reference)
    deviation = 1.4826 * np.median(np.abs(reference - middle))  # of a normal distribution, from the median deviation
    return bool(run.mean() - middle > max(_DEVIATIONS * deviation, _LEAST_RISE))
