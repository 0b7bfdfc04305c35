"""RSGN: random-subspace Gauss-Newton steps, from the scores that forward passes return (`zo.gauss_newton`).

A step takes one pass at w, one at w + eps z_j for each of its k directions (and one at w - eps z_j where one side is
not enough), and one for each trial of the move. It has no learning rate: the k x k system gives the length of the move,
and the damping adapts to what the last moves brought.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from ...core.resolved_config import ResolvedConfig
from ...models.trainable import Trainable
from ...zo.apply import Moved, Update
from ...zo.gauss_newton import Damping, Part, System, make_prior, make_system, odd_part
from ...zo.journal import Journal, JournalStep, as_float32
from ...zo.perturb import Direction, View
from ...zo.replay import recorded_update
from ..batching import Batch
from ..distributed.communicator import Communicator, Piece
from ..scoring import Scorer, by_example
from . import StepResult
from .zeroth_order import ZerothOrder, rms

# Trials of a move along the same directions, each with more damping than the one before.
_TRIALS = 4
# Standard deviation of the prior of the final norm's weights, in lengths of a direction entry. With 40 two tasks
# were learned too slowly, with 320 their training rows too well; 80 and 160 did about as well as each other.
_PRIOR_LENGTHS = 100.0


class RSGN(ZerothOrder):
    """Gauss-Newton steps in the span of random directions.

    A move is tried before it is made: the loss of the batch must fall, or the damping rises and the move becomes
    shorter. If the first trial is accepted a step takes k + 2 passes. A batch that is the whole training set stays the
    same in every step, and the scores at the point accepted are those at w of the next step: k + 1 passes.

    Where each step has another batch, the loss of that batch falls almost always, also where the move harms all other
    examples. There the next batch judges the move: its loss before and after it, which takes one more pass.

    Where the final norm alone trains, a training set in one batch is soon fitted too well. There the step minimises the
    sum of the losses and of the negative logarithm of a Gaussian prior around the weights before training (maximum a
    posteriori).
    """

    def __init__(self, scorer: Scorer, trainable: Trainable, config: ResolvedConfig, team: Communicator | None = None):
        """
        Args:
            team: the ranks that share the forward passes; None for a run in one process.
        """
        super().__init__(scorer, trainable, config, team)
        head = self.causal.head.name
        self._trains_head = any(name.rpartition(".")[0] == head for name in trainable.names)
        self.damping: Damping | None = None
        # The way back from the last move, and the curvature along it.
        self._last: tuple[Update, float] | None = None
        # The last batch, where it repeats, and its scores at w.
        self._scored: tuple[Batch, list[np.ndarray]] | None = None
        # The weights before the first step, where so few train that a copy costs nothing.
        self._start = self._flat_weights() if config.parsed_scope.last_layers == 0 else None

    def step(self, step: int, batch: Batch) -> StepResult:
        if self.damping is None:
            self.damping = Damping(noise=0.0) if batch.repeats else Damping()
        passes = self.passes
        directions = self.directions(step)
        lengths = (self.config.eps, -self.config.eps) if self.config.two_sided else (self.config.eps,)
        views = [self.causal.view(direction, length) for length in lengths for direction in directions]
        if batch.repeats:
            clean, sides = self._scores_at_w(step, batch), self._scores_near_w(step, batch, views)
        else:
            grids = self._scores_near_w(step, batch, [self._at_w(step), *views])
            clean, sides = [grid[0] for grid in grids], [grid[1:] for grid in grids]
            self._judge(batch, clean, self.damping)
        if self.config.two_sided:
            sides = [odd_part(before, *np.split(of_part, 2)) for before, of_part in zip(clean, sides, strict=True)]
        parts = [
            Part(before, after, part.target, part.answer_tokens)
            for before, after, part in zip(clean, sides, batch.parts, strict=True)
        ]
        system = make_system(parts, self.config.eps)
        loss, *gradient = as_float32([system.loss, *system.gradient.tolist()])
        finite = bool(np.isfinite([loss, *gradient]).all() and np.isfinite(system.curvature).all())
        if finite:
            prior = self._prior(directions, batch)
            factors = self._tried(step, batch, system, prior, directions, self.damping)
            along, trust, noise = as_float32([system.along(np.array(factors)), self.damping.trust, self.damping.noise])
            self.damping = Damping(trust, noise)
            if self.journal is not None:
                self.journal.append(JournalStep(tuple(gradient), tuple(factors), loss, state=(along, trust, noise)))
            terms = list(zip(directions, factors, strict=True))
            self.apply_updates(terms, step)
            self._last = _way_back(Update(step, terms)), along
        ties = sum(
            all(np.array_equal(after[i], before) for before, after in zip(clean, sides, strict=True))
            for i in range(len(directions))
        )
        loss = loss if finite else math.nan
        return StepResult(loss, 0.0, rms(gradient), ties, self.damping.value, self.passes - passes)

    def resume(self, journal: Journal, step: int) -> None:
        super().resume(journal, step)
        if len(journal):
            last = len(journal) - 1
            along, trust, noise = journal[last].state
            self.damping, self._last = Damping(trust, noise), (_way_back(recorded_update(journal, last)), along)

    def _judge(self, batch: Batch, clean: Sequence[np.ndarray], damping: Damping) -> None:
        """Adapts the damping to the last move, judged by a batch with the scores `clean` at w."""
        if self._last is not None and self._last[0].terms:
            back, along = self._last
            before = [grid[0] for grid in self.scores(batch, [self._moved(back)])]
            damping.judged(float(by_example(batch, before).mean() - by_example(batch, clean).mean()), along)

    def _scores_at_w(self, step: int, batch: Batch) -> list[np.ndarray]:
        """Scores of a batch that repeats, which the last step knows already."""
        if self._scored is None or self._scored[0] is not batch:
            self._scored = batch, [grid[0] for grid in self.scores(batch, [self._at_w(step)])]
        return self._scored[1]

    def _scores_near_w(self, step: int, batch: Batch, views: Sequence[View]) -> list[np.ndarray]:
        """As `scores`, of views that differ from w by eps: where the head does not train, one pass over the vocabulary
        gives the normalisers of all of them to first order, which is all that differences over eps have."""
        if self._trains_head:
            return self.scores(batch, views)

        def compute(batch: Batch, views: Sequence[View]) -> list[np.ndarray]:
            prefix = self.scorer.prefix(batch)
            near = self.scorer.normalisers(batch, self._at_w(step), prefix)
            grids = [self.scorer.scores(batch, view, prefix, near) for view in views]
            return [np.stack(of_part) for of_part in zip(*grids, strict=True)]

        # The pass at w that the normalisers take.
        self.passes += not all(part.shared for part in batch.parts)
        return self.shared(batch, views, compute, [part.candidate.shape for part in batch.parts])

    def _at_w(self, step: int) -> View:
        """The stored weights, by the same forward pass as a move of them."""
        return self._moved(Update(step, []))

    def _prior(self, directions: Sequence[Direction], batch: Batch) -> System:
        """The prior beside the mean loss of a batch that is the whole training set; zero for any other."""
        k = len(directions)
        if self._start is None or not batch.repeats:
            return System(0.0, np.zeros(k), np.zeros((k, k)))
        offset = self._flat_weights() - self._start
        slots = self.causal.slots
        vectors = [
            _flat(direction.scaled(name, slots[name].get().shape, 1.0) for name in self.trainable.names)
            for direction in directions
        ]
        lengths = np.concatenate([np.full(slots[name].get().size, self.scales[name]) for name in self.trainable.names])
        precision = 1.0 / (batch.size * _PRIOR_LENGTHS**2)
        return make_prior(offset / lengths, np.stack(vectors) / lengths, precision)

    def _flat_weights(self) -> np.ndarray:
        """All weights that train, float64 [d]."""
        return _flat(self.causal.slots[name].get() for name in self.trainable.names)

    def _tried(
        self,
        step: int,
        batch: Batch,
        data: System,
        prior: System,
        directions: Sequence[Direction],
        damping: Damping,
    ) -> list[float]:
        """Factors of the first trial that lowers the loss of the batch; zeros if none does."""
        system = data + prior
        for _ in range(_TRIALS):
            factors = self._factors(system, damping)
            trial = Update(step, list(zip(directions, factors, strict=True)))
            scores = [grid[0] for grid in self.scores(batch, [self._moved(trial)])]
            move = -np.array(factors)
            decrease = data.loss - float(by_example(batch, scores).mean()) + prior.decrease(move)
            predicted = system.decrease(move)
            damping.tried(decrease, predicted)
            if decrease > 0.0:
                if batch.repeats:
                    self._scored = batch, scores
                return factors
        return [0.0] * len(directions)

    def _factors(self, system: System, damping: Damping) -> list[float]:
        """Factors of the damped step, w -= sum_j c_j z_j, as the journal stores them; the same on all ranks."""
        (step,) = self.team.scatter_gather(
            [Piece(1.0, (len(system.gradient),))], lambda _: [system.step(damping.value)]
        )
        return as_float32((-step).tolist())

    def _moved(self, update: Update) -> View:
        return Moved(update, set(self.trainable.names), self.config.seed, self.causal.compute_dtype)


def _flat(arrays: Iterable[mx.array]) -> np.ndarray:
    """All entries of some arrays, float64 [d]."""
    return np.concatenate([np.array(array.astype(mx.float32), np.float64).reshape(-1) for array in arrays])


def _way_back(move: Update) -> Update:
    """The update that takes a move back, up to rounding; without terms if the move has no length."""
    return Update(move.step, [(direction, -factor) for direction, factor in move.terms if factor != 0.0])
