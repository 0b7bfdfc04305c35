"""The part that all forward-only methods share: directions, passes divided among ranks, updates and their journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...core.resolved_config import ResolvedConfig
from ...models.trainable import Trainable
from ...zo.apply import Terms, Update, apply_updates
from ...zo.journal import Header, Journal, JournalWriter, Parameter
from ...zo.noise import NOISE_VERSION
from ...zo.perturb import Direction, View
from ...zo.replay import replay
from ..batching import Batch
from ..distributed.communicator import Communicator, Piece, shares_points
from ..scoring import Scorer
from . import Method

Compute = Callable[[Batch, Sequence[View]], list[np.ndarray]]
"""Values of the examples of each micro-batch under each view: float64 [views, B, ...] per micro-batch."""


class ZerothOrder(Method):
    """Steps along random directions on the parameters in `trainable`.

    Everything random follows from the seed and the step, so a step can be repeated exactly; the ranks exchange values
    of single examples, so that every rank computes with the same numbers in the same order.
    """

    has_journal = True
    journal: JournalWriter | None = None
    """Records each step before the weights move; None records nothing."""
    start: Mapping[str, mx.array] | None = None
    """The parameters before the first step, for a method that pulls towards them."""
    passes = 0
    """Forward passes over a batch so far, those of all ranks."""

    def __init__(self, scorer: Scorer, trainable: Trainable, config: ResolvedConfig, team: Communicator | None = None):
        """
        Args:
            team: the ranks that share the forward passes; None for a run in one process.
        """
        self.scorer, self.causal = scorer, scorer.causal
        self.trainable, self.config = trainable, config
        self.team = team or Communicator()
        self.scales = {name: trainable.scales.get(name, 1.0) for name in trainable.names}

    def directions(self, step: int) -> list[Direction]:
        """The random directions of a step."""
        config = self.config
        return [Direction(config.seed, step, index, config.directions, self.scales) for index in range(config.queries)]

    def open_journal(self, path: Path, base_sha256: str, after: Journal | None = None) -> None:
        self.journal = JournalWriter(path, after.header if after else self.header(base_sha256), after)

    def sync(self) -> None:
        if self.journal is not None:
            self.journal.sync()

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
        self.replay(journal, step, len(journal))

    def replay(self, journal: Journal, start: int, stop: int) -> None:
        replay(self.causal.slots, journal, start, stop, origin=self.start)

    def apply_updates(self, terms: Terms, step: int, decay: float = 0.0, pull: float = 0.0) -> None:
        """Applies an update to the parameters that train (see `zo.apply`)."""
        update = Update(step, terms, decay, pull)
        apply_updates(self.causal.slots, self.trainable.names, [update], self.config.seed, self.start)

    def scores(self, batch: Batch, views: Sequence[View]) -> list[np.ndarray]:
        """Scores of all candidates under each view: float64 [views, B, C] per micro-batch (see `Scorer.scores`)."""
        return self.shared(batch, views, self._scores, [part.candidate.shape for part in batch.parts])

    def shared(
        self, batch: Batch, views: Sequence[View], compute: Compute, shapes: Sequence[tuple[int, ...]]
    ) -> list[np.ndarray]:
        """Values of all examples under each view, computed by the ranks together.

        Args:
            compute: computes the values of some micro-batches under some views.
            shapes: shape of the values of each micro-batch under one view, [B, ...].
        """
        self.passes += len(views)
        if shares_points(self.config):
            sizes = [math.prod(shape) for shape in shapes]

            def of_views(numbers: Sequence[int]) -> list[np.ndarray]:
                found = compute(batch, [views[i] for i in numbers])
                return list(np.concatenate([values.reshape(len(numbers), -1) for values in found], axis=1))

            whole = np.stack(self.team.scatter_gather([Piece(1.0, (sum(sizes),))] * len(views), of_views))
            of_parts = np.split(whole, np.cumsum(sizes)[:-1], axis=1)
            return [values.reshape(len(views), *shape) for values, shape in zip(of_parts, shapes, strict=True)]
        pieces = [
            Piece(float(part.tokens.size), (len(views), *shape))
            for part, shape in zip(batch.parts, shapes, strict=True)
        ]
        return self.team.scatter_gather(pieces, lambda numbers: compute(batch.picked(numbers), views))

    def _scores(self, batch: Batch, views: Sequence[View]) -> list[np.ndarray]:
        # Frozen first layers give every view the same hidden states: they run once.
        prefix = self.scorer.prefix(batch)
        grids = [self.scorer.scores(batch, view, prefix) for view in views]
        return [np.stack(of_part) for of_part in zip(*grids, strict=True)]


def rms(derivatives: Sequence[float]) -> float:
    """The derivative itself, or the rms of several."""
    if len(derivatives) == 1:
        return derivatives[0]
    return math.sqrt(sum(d * d for d in derivatives) / len(derivatives))
