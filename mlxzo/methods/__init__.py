"""Optimisation methods: each takes a batch and moves the trainable parameters by one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..batching import Batch
from ..config import RunConfig

if TYPE_CHECKING:
    from ..models.scope import Trainable
    from ..scoring import Scorer


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


def make_method(scorer: Scorer, trainable: Trainable, config: RunConfig) -> Method:
    """The method of a resolved configuration.

    Raises:
        ConfigError: the method cannot do what the configuration asks of it on this model.
    """
    from .backprop import Backprop
    from .mezo import MeZO

    return {"mezo": MeZO, "bp": Backprop}[config.method](scorer, trainable, config)
