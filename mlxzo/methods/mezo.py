"""MeZO: forward passes along random directions, then one step along them.

Malladi et al., *Fine-Tuning Language Models with Just Forward Passes* (arXiv 2305.17333), Algorithm 1, with weights
perturbed lazily instead of in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from ..batching import Batch
from ..config import RunConfig
from ..models.scope import Trainable
from ..schedule import learning_rate
from ..scoring import Scorer
from ..zo.estimators import ESTIMATORS, Point
from ..zo.move import Terms, move
from ..zo.perturb import Direction
from ..zo.updates import Momentum, UpdateRule
from . import StepResult


class MeZO:
    """Zeroth-order steps on the parameters in `trainable`.

    An estimator finds derivatives along the step's directions, the update rule makes factors of them, and one pass
    over the weights applies w -= sum c_i z_i. Everything random follows from the seed and the step, so a step can be
    repeated exactly.
    """

    def __init__(self, scorer: Scorer, trainable: Trainable, config: RunConfig):
        self.scorer, self.causal = scorer, scorer.causal
        self.trainable, self.config = trainable, config
        self.estimator = ESTIMATORS[config.estimator]
        self.rule = UpdateRule(config.update == "adaptive", config.clip)
        self.momentum = Momentum(config.momentum)
        self.scales = {name: trainable.scales.get(name, 1.0) for name in trainable.names}

    def step(self, step: int, batch: Batch) -> StepResult:
        config = self.config
        lr = learning_rate(config.lr, config.schedule, step, config.steps, config.warmup_steps)
        directions = [
            Direction(config.seed, step, index, config.directions, self.scales) for index in range(config.queries)
        ]
        # Frozen first layers give every side the same hidden states: they run at most once a step.
        prefix = self.scorer.prefix(batch)
        estimate = self.estimator(lambda points: self.losses(batch, points, prefix), directions, config.eps)
        derivatives = estimate.derivatives
        if math.isfinite(estimate.loss) and all(map(math.isfinite, derivatives)):
            factors = self.rule.factors(derivatives, lr)
            terms = self.momentum.terms(list(zip(directions, factors, strict=True)))
            self.move(terms, step, lr * config.weight_decay)
        return StepResult(estimate.loss, lr, _summary(derivatives))

    def losses(self, batch: Batch, points: Sequence[Point], prefix: Sequence[mx.array] | None = None) -> list[float]:
        """Mean losses at w + eps z for each point (z, eps); the stored weights stay as they are, bit for bit.

        Args:
            prefix: what the scorer's `prefix` gives for the batch, where it is at hand.
        """
        prefix = self.scorer.prefix(batch) if prefix is None else prefix
        views = [self.causal.view(direction, eps) for direction, eps in points]
        if self.config.sides == "stacked":
            return [float(side.mean()) for side in self.scorer.stacked_losses(batch, views, prefix)]
        return [float(self.scorer.losses(batch, view, prefix).mean()) for view in views]

    def move(self, terms: Terms, step: int, decay: float = 0.0) -> None:
        """Applies an update to the parameters that train (see `zo.move`)."""
        move(self.causal.slots, self.trainable.names, terms, self.config.seed, step, decay)


def _summary(derivatives: Sequence[float]) -> float:
    """The derivative itself, or the rms of several."""
    if len(derivatives) == 1:
        return derivatives[0]
    return math.sqrt(sum(d * d for d in derivatives) / len(derivatives))
