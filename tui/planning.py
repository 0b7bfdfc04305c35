"""What a run will take, as the screens show it. The one place of the app that asks the memory planner."""

from __future__ import annotations

from dataclasses import dataclass

from mlxzo.config import RunConfig
from mlxzo.tasks.base import TaskData


@dataclass(frozen=True)
class Part:
    """One component of the predicted peak."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Prediction:
    """What a run is predicted to take.

    Attributes:
        parts: the components of the peak, which is their sum.
        fits: whether the peak stays under the cap or, without one, under what the machine has free.
        notes: how the run was fitted, and what would help where it does not fit, in words.
    """

    parts: tuple[Part, ...]
    fits: bool
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def predict(config: RunConfig, model: str, data: TaskData | None) -> Prediction | None:
    """What the run would take with `model` in place of its own; None where the model's figures are not known.

    Raises:
        DoesNotFit: the run cannot be fitted to its cap; names what would fit.
    """
    return None
