"""Telling trouble from noise in the losses of optimiser steps.

A rule by ranks, since losses are anything but normally distributed: a run of steps is a spike if nearly all of them lie
above nearly all that went before, and by more than the noise. Losses that fall would hide it behind their own past:
what went before is brought to the level that they had reached, and no lower, since losses flatten. A single high loss
is no alarm: one odd batch does no harm once its gradient is clipped, and losses near zero with rare high ones are what
a nearly learnt set looks like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RUN = 10
"""Steps that are looked at together."""
_REFERENCE = 30
"""Steps before them that they are compared with."""
HISTORY = RUN + _REFERENCE
_STEPS = np.arange(_REFERENCE)
_LOWER = 2
"""Of the run's losses, so many may be no higher, and as many of the reference's may be higher still."""
_FALL = 1.0
"""In deviations of a step from a straight line through the reference: if that falls by more, the reference is brought
to the line's end."""
_RISE = 2.3
"""How far the run's mean must lie above the reference's median, in deviations."""
_RISE_AT_ONCE = 1.25
"""And its median above that of as many steps just before it: losses that have fallen and lie level now end above the
straight line, and rare high ones lie above it anywhere."""
_LEAST_RISE = 0.05
"""Nats; a smaller rise harms nobody, whatever the noise."""


def has_spiked(losses: Sequence[float]) -> bool:
    """Whether the last `RUN` of `losses`, of consecutive steps, are a spike. Only the last `HISTORY` are looked at.

    Simulated (`benchmarks/prove.py alarms`), chance makes 2 to 3 of 100,000 steps without a trend one if their noise is
    normal, logistic or heavy-tailed, and 6 if it is log-normal; in losses that fall and level off, 3 of 1,000 trainings
    have one.
    """
    reference, run = np.array(losses[-HISTORY:-RUN]), np.array(losses[-RUN:])
    if len(reference) < _REFERENCE:
        return False
    slope, start = np.polyfit(_STEPS, reference, 1)
    line = start + slope * _STEPS
    # From the mean distance, as of a normal distribution: rare high losses weigh less than in a root of squares.
    deviation = math.sqrt(math.pi / 2) * np.abs(reference - line).mean()
    if np.median(run) - np.median(reference[-RUN:]) <= _RISE_AT_ONCE * deviation:
        return False
    if line[0] - line[-1] > _FALL * deviation:
        reference = reference - line + line[-1]
    high = int((run > np.sort(reference)[-1 - _LOWER]).sum()) >= RUN - _LOWER
    return high and bool(run.mean() - np.median(reference) > max(_RISE * deviation, _LEAST_RISE))
