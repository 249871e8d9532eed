"""Trainings whose steps are disturbed on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fm_local.trainer.step import Gradients, Stepper

Disturb = Callable[[Stepper, int, Callable[[], Gradients]], Gradients]


def around_gradients(monkeypatch: pytest.MonkeyPatch, disturb: Disturb) -> None:
    """Puts `disturb` around the computing of each step's gradients."""
    plain = Stepper.gradients

    def gradients(self: Stepper, given: np.ndarray, step: int, **options: float) -> Gradients:
        return disturb(self, step, lambda: plain(self, given, step, **options))  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "gradients", gradients)


def spoil_once(at_step: int) -> Disturb:
    """Adds noise to all weights before step `at_step`, counted from 0, so that the loss rises and stays high."""
    hit: list[int] = []

    def spoil(stepper: Stepper, step: int, gradients: Callable[[], Gradients]) -> Gradients:
        if step == at_step and not hit:
            hit.append(step)
            with torch.no_grad():
                for parameter in stepper._training.trainee.trainable.values():
                    parameter.add_(torch.randn_like(parameter))
        return gradients()

    return spoil
