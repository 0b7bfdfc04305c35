"""Step lengths from directional derivatives: plain and adaptive rules, clipping, momentum.

The state is a few scalars: the factors of an update follow from the derivatives so far.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .apply import Terms


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
    (arXiv 2605.03869).

    Attributes:
        clip: limit of a derivative in multiples of the running rms, against single bad batches (QZO, arXiv 2505.13430,
            clips at a fixed value); None for no limit.
    """

    adaptive: bool
    clip: float | None = 3.0
    rms: RunningRms = field(default_factory=RunningRms)

    def factors(self, derivatives: Sequence[float], lr: float) -> list[float]:
        rms = self.rms.update(derivatives)
        if rms == 0.0:
            return [0.0] * len(derivatives)
        limit = math.inf if self.clip is None else self.clip * rms
        unit = rms if self.adaptive else 1.0
        return [lr * max(-limit, min(limit, d)) / (unit * len(derivatives)) for d in derivatives]


class Momentum:
    """Heavy-ball momentum without a buffer: past directions are generated again from their names.

    m_t = beta m_(t-1) + (1 - beta) u_t and w -= m_t, with u_t the update without momentum. m_t is a sum of past updates
    with decreasing weights, truncated where they fall below 1 % of the first, so it needs the last few factors only.
    Each of them costs the noise of its direction again.
    """

    def __init__(self, beta: float):
        self.beta = beta
        self.window = math.ceil(math.log(0.01) / math.log(beta)) if beta > 0.0 else 1
        # By repeated products, which round identically on every machine, unlike powers.
        self._weights = list(itertools.accumulate([1.0 - beta, *[beta] * (self.window - 1)], operator.mul))
        self._past: deque[Terms] = deque(maxlen=self.window)

    def terms(self, update: Terms) -> Terms:
        """The update to apply, newest directions first."""
        if self.beta == 0.0:
            return update
        self._past.appendleft(update)
        return [
            (direction, weight * factor)
            for weight, past in zip(self._weights, self._past, strict=False)
            for direction, factor in past
        ]
