"""Step lengths from directional derivatives: the plain and the adaptive rule.

The state is a few scalars: the factors of an update follow from the derivatives so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# Largest derivative that the adaptive rule takes in full, in multiples of the running rms.
_MOST = 3.0


@dataclass
class RunningRms:
    """Root of an exponential mean of squared derivatives, with Adam's correction for its start at zero."""

    decay: float = 0.9
    mean_square: float = 0.0
    count: int = 0

    def update(self, derivatives: Sequence[float]) -> float:
        """Takes in the derivatives of a step; returns the rms."""
        self.count += 1
        now = sum(d * d for d in derivatives) / len(derivatives)
        self.mean_square = self.decay * self.mean_square + (1.0 - self.decay) * now
        return math.sqrt(self.mean_square / (1.0 - self.decay**self.count))


@dataclass
class UpdateRule:
    """Turns the derivatives g_i of a step into the factors c_i of its update, w -= sum_i c_i z_i.

    `sgd`: c_i = lr * g_i / q for q directions (Malladi et al. 2023, Algorithm 1). `adaptive`: g_i is divided by the
    running rms of the derivatives, so lr is the length of a step and the same for large and small losses, after MEAZO
    (arXiv 2605.03869); it counts as at most `_MOST` times that rms, against single bad batches (QZO, arXiv 2505.13430,
    clips at a fixed value).
    """

    adaptive: bool
    rms: RunningRms = field(default_factory=RunningRms)

    def factors(self, derivatives: Sequence[float], lr: float) -> list[float]:
        rms = self.rms.update(derivatives)
        if rms == 0.0:
            return [0.0] * len(derivatives)
        if not self.adaptive:
            return [lr * d / len(derivatives) for d in derivatives]
        limit = _MOST * rms
        return [lr * max(-limit, min(limit, d)) / (rms * len(derivatives)) for d in derivatives]
