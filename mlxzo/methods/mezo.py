"""MeZO: two forward passes along a random direction, then one step along it.

Malladi et al., *Fine-Tuning Language Models with Just Forward Passes* (arXiv 2305.17333), Algorithm 1, with weights
perturbed lazily instead of in place.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ..batching import Batch
from ..config import RunConfig
from ..models.causal import CausalLM
from ..models.scope import Trainable
from ..scoring import Prefix, batch_loss
from ..zo.noise import random_words
from ..zo.perturb import Direction, Perturbation
from ..zo.rounding import stochastic_round
from ..zo.updates import learning_rate, update_rule
from . import StepResult


class MeZO:
    """Two-sided SPSA on the parameters in `trainable`.

    g = (L(w + eps z) - L(w - eps z)) / (2 eps), then w -= c z with c from the update rule. The reported loss is the
    mean of the two sides. Everything random follows from the seed and the step, so a step can be repeated exactly.
    """

    def __init__(self, causal: CausalLM, trainable: Trainable, prefix: Prefix, config: RunConfig):
        self.causal, self.trainable, self.prefix, self.config = causal, trainable, prefix, config
        self.rule = update_rule(config.update)
        self.scales = {name: trainable.scales.get(name, 1.0) for name in trainable.names}

    def step(self, step: int, batch: Batch) -> StepResult:
        config = self.config
        lr = learning_rate(config.lr, config.schedule, step, config.steps)
        direction = Direction(config.seed, step, 0, config.directions, self.scales)
        plus, minus = self.losses(batch, direction, config.eps)
        derivative = (plus - minus) / (2.0 * config.eps)
        loss = 0.5 * (plus + minus)
        if math.isfinite(loss) and math.isfinite(derivative):
            self.move(direction, self.rule.factor(derivative, lr))
        return StepResult(loss, lr, derivative)

    def losses(self, batch: Batch, direction: Direction, eps: float) -> tuple[float, float]:
        """Losses at w + eps z and w - eps z; the stored weights stay as they are, bit for bit."""
        causal = self.causal
        # Frozen first layers give both signs the same hidden states: they run at most once a step.
        hidden = self.prefix.hidden(batch)
        values = []
        for signed in (eps, -eps):
            view = Perturbation(direction, signed, causal.compute_dtype)
            # One side after the other: evaluated together, both sides' weights would be alive at once.
            values.append(batch_loss(causal, batch, view, hidden, self.prefix.layers).item())
        return values[0], values[1]

    def move(self, direction: Direction, factor: float) -> None:
        """w -= factor * z, one tensor at a time; half-precision weights are rounded stochastically."""
        if factor == 0.0:
            return
        for name in self.trainable.names:
            slot = self.causal.slots[name]
            weight = slot.get()
            moved = weight.astype(mx.float32) + direction.scaled(name, weight.shape, -factor)
            if weight.dtype != mx.float32:
                words = random_words(direction.seed, direction.step, direction.index, f"rounding|{name}", weight.shape)
                moved = stochastic_round(moved, weight.dtype, words)
            slot.set(moved)
            # With no other reference to the old weight, its buffer is reused for the new one.
            del weight
            mx.eval(moved)
