"""From a directional derivative to a step length: plain SGD, and a step divided by its running rms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class UpdateRule(Protocol):
    """Turns the derivative g along z into the factor c of the update w -= c * z."""

    def factor(self, derivative: float, lr: float) -> float: ...


class Sgd:
    """w -= lr * g * z: zeroth-order SGD (Malladi et al. 2023, Algorithm 1)."""

    def factor(self, derivative: float, lr: float) -> float:
        return lr * derivative


@dataclass
class Adaptive:
    """w -= lr * clip(g / rms(g)) * z, with one scalar of state.

    The rms is that of an exponential mean of squared derivatives with Adam's correction for its start at zero, after
    MEAZO (arXiv 2605.03869). A derivative far out of the running range is clipped, so that one bad batch cannot throw
    the weights off.
    """

    decay: float = 0.9
    clip: float = 3.0
    mean_square: float = 0.0
    count: int = 0

    def factor(self, derivative: float, lr: float) -> float:
        self.count += 1
        self.mean_square = self.decay * self.mean_square + (1.0 - self.decay) * derivative * derivative
        rms = math.sqrt(self.mean_square / (1.0 - self.decay**self.count))
        if rms == 0.0:
            return 0.0
        return lr * max(-self.clip, min(self.clip, derivative / rms))


def update_rule(name: str) -> UpdateRule:
    """The rule called `sgd` or `adaptive`."""
    return {"sgd": Sgd, "adaptive": Adaptive}[name]()


def learning_rate(lr: float, schedule: str, step: int, steps: int) -> float:
    """The rate at `step` (from 0): `constant`, or falling to zero along a line (`linear`) or half a `cosine`."""
    done = step / steps
    if schedule == "linear":
        return lr * (1.0 - done)
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return lr
