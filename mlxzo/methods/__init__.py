"""Optimisation methods: each takes a batch and moves the trainable parameters by one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..batching import Batch


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step: mean loss of the batch, the learning rate used, and MeZO's directional derivative."""

    loss: float
    lr: float
    directional_derivative: float | None = None


class Method(Protocol):
    """What the trainer asks of an optimisation method."""

    def step(self, step: int, batch: Batch) -> StepResult:
        """Moves the parameters once; `step` counts from 0. A loss that is not finite moves nothing."""
        ...
