"""MeZO: forward passes along random directions, then one step along them.

Malladi et al., *Fine-Tuning Language Models with Just Forward Passes* (arXiv 2305.17333), Algorithm 1, with weights
perturbed lazily instead of in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.lr_schedule import learning_rate
from ...core.resolved_config import ResolvedConfig
from ...models.trainable import Trainable
from ...zo.apply import Terms, Update, apply_updates
from ...zo.estimators import ESTIMATORS, Point
from ...zo.journal import Header, Journal, JournalStep, JournalWriter, Parameter, as_float32
from ...zo.noise import NOISE_VERSION
from ...zo.perturb import Direction
from ...zo.replay import replay
from ...zo.update_rules import UpdateRule
from ..batching import Batch
from ..distributed.communicator import Communicator, Piece, shares_points
from ..objectives import SCORE_OBJECTIVES, OfAnswers
from ..scoring import Scorer
from . import Method, StepResult


class MeZO(Method):
    """Zeroth-order steps on the parameters in `trainable`.

    An estimator finds derivatives along the step's directions, the update rule makes factors of them, and one pass
    over the weights applies w -= sum c_i z_i. Everything random follows from the seed and the step, so a step can be
    repeated exactly.
    """

    has_journal = True
    journal: JournalWriter | None = None
    """Records each step before the weights move; None records nothing."""

    def __init__(
        self,
        scorer: Scorer,
        trainable: Trainable,
        config: ResolvedConfig,
        of_answers: OfAnswers | None = None,
        team: Communicator | None = None,
    ):
        """
        Args:
            of_answers: the objective, where it is a function of generated answers.
            team: the ranks that share the forward passes; None for a run in one process.
        """
        self.scorer, self.causal = scorer, scorer.causal
        self.trainable, self.config = trainable, config
        self.team = team or Communicator()
        self.estimator = ESTIMATORS[config.estimator]
        self.of_answers = of_answers
        self.of_scores = SCORE_OBJECTIVES.get(config.objective)
        self.rule = UpdateRule(config.update == "adaptive", config.clip)
        self.scales = {name: trainable.scales.get(name, 1.0) for name in trainable.names}

    def step(self, step: int, batch: Batch) -> StepResult:
        config = self.config
        lr = learning_rate(config.lr, config.schedule, step, config.steps, config.warmup_steps)
        directions = [
            Direction(config.seed, step, index, config.directions, self.scales) for index in range(config.queries)
        ]
        points = self.estimator.points(directions, config.eps)
        estimate = self.estimator.combine(self.losses(batch, points), config.eps)
        # Rounded to the precision of the journal, so that a replay computes the same update.
        loss, *derivatives = as_float32([estimate.loss, *estimate.derivatives])
        if math.isfinite(loss) and all(map(math.isfinite, derivatives)):
            *factors, decay = as_float32([*self.rule.factors(derivatives, lr), lr * config.weight_decay])
            if self.journal is not None:
                self.journal.append(JournalStep(tuple(derivatives), tuple(factors), loss, decay))
            self.apply_updates(list(zip(directions, factors, strict=True)), step, decay)
        return StepResult(loss, lr, _summary(derivatives), ties=sum(d == 0.0 for d in derivatives))

    def open_journal(self, path: Path, base_sha256: str, after: Journal | None = None) -> None:
        self.journal = JournalWriter(path, after.header if after else self.header(base_sha256), after)

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def header(self, base_sha256: str) -> Header:
        """Header of the journal of this run."""
        weights = {name: self.causal.slots[name].get() for name in self.trainable.names}
        parameters = tuple(
            Parameter(name, str(weight.dtype).removeprefix("mlx.core."), tuple(weight.shape), self.scales[name])
            for name, weight in weights.items()
        )
        return Header(self.config.to_dict(), base_sha256, parameters, NOISE_VERSION)

    def resume(self, journal: Journal, step: int) -> None:
        """Replays the steps of a journal from `step` on, and rebuilds the state of the update rule from all of them."""
        replay(self.causal.slots, journal, step)
        for recorded in journal:
            self.rule.rms.update(recorded.derivatives)

    def losses(self, batch: Batch, points: Sequence[Point]) -> list[float]:
        """Means of the objective at w + eps z for each point (z, eps); the stored weights keep their bits.

        The ranks share the micro-batches or the points. They exchange values of single examples, so that every rank
        takes the mean of the same numbers in the same order.
        """
        if shares_points(self.config):
            whole = [Piece(1.0, (batch.size,))] * len(points)
            values = self.team.scatter_gather(whole, lambda numbers: self._values(batch, [points[i] for i in numbers]))
            return [float(side.mean()) for side in values]
        parts = [
            Piece(float(part.tokens.size), (len(points), len(places)))
            for part, places in zip(batch.parts, batch.places, strict=True)
        ]

        def compute(numbers: Sequence[int]) -> list[np.ndarray]:
            sides = np.stack(self._values(batch.picked(numbers), points))
            return np.split(sides, np.cumsum([len(batch.places[i]) for i in numbers])[:-1], axis=1)

        sides = np.empty((len(points), batch.size))
        for places, values in zip(batch.places, self.team.scatter_gather(parts, compute), strict=True):
            sides[:, list(places)] = values
        return [float(side.mean()) for side in sides]

    def _values(self, batch: Batch, points: Sequence[Point]) -> list[np.ndarray]:
        """Objective of each example at each point: float64 [B] per point."""
        views = [self.causal.view(direction, eps) for direction, eps in points]
        if self.of_answers is not None:
            return [self.of_answers(batch, view) for view in views]
        # Frozen first layers give every point the same hidden states: they run once.
        prefix = self.scorer.prefix(batch)
        return [self.scorer.losses(batch, view, prefix, self.of_scores) for view in views]

    def apply_updates(self, terms: Terms, step: int, decay: float = 0.0) -> None:
        """Applies an update to the parameters that train (see `zo.apply`)."""
        apply_updates(self.causal.slots, self.trainable.names, [Update(step, terms, decay)], self.config.seed)


def _summary(derivatives: Sequence[float]) -> float:
    """The derivative itself, or the rms of several."""
    if len(derivatives) == 1:
        return derivatives[0]
    return math.sqrt(sum(d * d for d in derivatives) / len(derivatives))
