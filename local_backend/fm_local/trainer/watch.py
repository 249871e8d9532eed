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
_REFERENCE = 64
"""Steps before them that they are compared with."""
HISTORY = RUN + _REFERENCE
_FEWEST = 24
"""Steps to compare with, below which nothing is said."""
_NOISES = 2.5
"""How far the run's mean must lie above the reference, in standard deviations of a step."""
_LEAST_RISE = 0.05
"""Nats; a smaller rise harms nobody, whatever the noise."""


def has_spiked(losses: Sequence[float]) -> bool:
    """Whether the last `RUN` of `losses`, of consecutive steps, are a spike. Only the last `HISTORY` are looked at.

    In losses without a trend, chance alone gives an alarm in four steps of 10^9: 8 · (3/65)^7, for seven of eight above
    all but two of the reference.
    """
    reference, run = np.array(losses[-HISTORY:-RUN]), np.array(losses[-RUN:])
    count = len(reference)
    if count < _FEWEST:
        return False
    # A falling loss would hide a spike behind its own past: the reference is moved along its slope to its end.
    half = count // 2
    slope = min(0.0, float(np.median(reference[half : 2 * half] - reference[:half])) / half)
    level = reference + slope * (count - 1 - np.arange(count))
    if int((run > np.sort(level)[-3]).sum()) < RUN - 1:
        return False
    middle = np.median(level)
    deviation = 1.4826 * np.median(np.abs(level - middle))  # of a normal distribution, from the median deviation
    return bool(run.mean() - middle > max(_NOISES * deviation, _LEAST_RISE))
