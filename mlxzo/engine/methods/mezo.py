"""MeZO: forward passes along random directions, then one step along them.

Malladi et al., *Fine-Tuning Language Models with Just Forward Passes* (arXiv 2305.17333), Algorithm 1, with weights
perturbed lazily instead of in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...core.lr_schedule import learning_rate
from ...core.resolved_config import ResolvedConfig
from ...models.trainable import Trainable
from ...zo.estimators import ESTIMATORS, Point
from ...zo.journal import Journal, JournalStep, as_float32
from ...zo.perturb import View
from ...zo.update_rules import UpdateRule
from ..batching import Batch
from ..distributed.communicator import Communicator
from ..objectives import SCORE_OBJECTIVES, AnswerObjective
from ..scoring import Scorer, by_example
from . import StepResult
from .zeroth_order import ZerothOrder, rms


class MeZO(ZerothOrder):
    """An estimator finds derivatives along the step's directions, the update rule makes factors of them, and one pass
    over the weights applies w -= sum c_i z_i."""

    def __init__(
        self,
        scorer: Scorer,
        trainable: Trainable,
        config: ResolvedConfig,
        of_answers: AnswerObjective | None = None,
        team: Communicator | None = None,
    ):
        """
        Args:
            of_answers: the objective, where it is a function of generated answers.
            team: the ranks that share the forward passes; None for a run in one process.
        """
        super().__init__(scorer, trainable, config, team)
        self.estimator = ESTIMATORS[config.estimator]
        self.of_answers = of_answers
        self.of_scores = SCORE_OBJECTIVES.get(config.objective)
        self.rule = UpdateRule(config.update == "adaptive")

    def step(self, step: int, batch: Batch) -> StepResult:
        config = self.config
        lr = learning_rate(config.lr, config.schedule, step, config.steps, config.warmup_steps)
        directions, passes = self.directions(step), self.passes
        points = self.estimator.points(directions, config.eps)
        estimate = self.estimator.combine(self.losses(batch, points), config.eps)
        # Rounded to the precision of the journal, so that a replay computes the same update.
        loss, *derivatives = as_float32([estimate.loss, *estimate.derivatives])
        finite = math.isfinite(loss) and all(map(math.isfinite, derivatives))
        if finite:
            *factors, decay = as_float32([*self.rule.factors(derivatives, lr), lr * config.weight_decay])
            finite = all(map(math.isfinite, (*factors, decay)))
            if finite:
                if self.journal is not None:
                    self.journal.append(JournalStep(tuple(derivatives), tuple(factors), loss, decay))
                self.apply_updates(list(zip(directions, factors, strict=True)), step, decay)
        ties = sum(d == 0.0 for d in derivatives)
        return StepResult(loss if finite else math.nan, lr, rms(derivatives), ties=ties, passes=self.passes - passes)

    def resume(self, journal: Journal, step: int) -> None:
        """Replays the steps of a journal from `step` on, and rebuilds the state of the update rule from all of them."""
        super().resume(journal, step)
        for recorded in journal:
            self.rule.rms.update(recorded.derivatives)

    def losses(self, batch: Batch, points: Sequence[Point]) -> list[float]:
        """Means of the objective at w + eps z for each point (z, eps); the stored weights keep their bits."""
        views = [self.causal.view(direction, eps) for direction, eps in points]
        if self.of_answers is not None:
            values = self.shared(batch, views, self._of_answers, [(len(places),) for places in batch.places])
            sides = np.empty((len(views), batch.size))
            for places, of_part in zip(batch.places, values, strict=True):
                sides[:, list(places)] = of_part
        else:
            grids = self.scores(batch, views)
            sides = [by_example(batch, [grid[i] for grid in grids], self.of_scores) for i in range(len(views))]
        return [float(side.mean()) for side in sides]

    def _of_answers(self, batch: Batch, views: Sequence[View]) -> list[np.ndarray]:
        assert self.of_answers is not None
        values = np.stack([self.of_answers(batch, view) for view in views])
        return [values[:, list(places)] for places in batch.places]
