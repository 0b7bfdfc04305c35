"""Evaluation: what a model answers, and how good that is.

An answer is the likeliest of an example's candidates, or what the model writes (see `generation`). A metric is a
function of answers and of the answers that count as right (see `tasks.metrics`); the loss is that of the candidates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

import numpy as np

from ..core.metrics import metric_named
from ..tasks.base import Example
from ..tasks.metrics import METRICS
from .batching import Batch, Shapes, by_length
from .distributed.communicator import Communicator, Piece
from .encoding import EncodedExample
from .scoring import Scorer, example_losses


@dataclass(frozen=True)
class Evaluation:
    """Outcome of an evaluation: `value` of the task's metric, mean loss, and how long it took in seconds.

    Attributes:
        majority: what the most frequent label would score; None where there are no labels.
        more: further metrics of the same answers.
    """

    metric: str
    value: float
    loss: float
    examples: int
    majority: float | None
    seconds: float
    more: dict[str, float] = field(default_factory=dict)

    def better_than(self, other: Evaluation | None) -> bool:
        """Compares two evaluations by the metric, and by the loss where a share cannot tell them apart.

        Shares within one standard error of a binomial share count as equal. On 100 examples that is 4 to 5 points, so
        the higher accuracy would often be luck, while the loss sees small changes of every example. A mean of F1 values
        has at most that error: no distribution on [0, 1] spreads wider than the share with the same mean.
        """
        if other is None:
            return True
        metric = metric_named(self.metric)
        error = math.sqrt(other.value * (1.0 - other.value) / other.examples) if metric.is_share else 0.0
        if abs(self.value - other.value) > error:
            return metric.merit(self.value) > metric.merit(other.value)
        return metric.is_share and self.loss < other.loss


@dataclass(frozen=True)
class Scored:
    """Scores of examples: for each the float64 [C] of its candidates (see `Scorer.scores`), and the losses [N]."""

    scores: list[np.ndarray]
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Mean loss, summed in the order of the examples, so that it does not depend on how they were batched."""
        return float(self.losses.mean())


def score(
    scorer: Scorer,
    examples: Sequence[EncodedExample],
    *,
    rows: int,
    make: Callable[[Sequence[EncodedExample]], Batch],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    team: Communicator | None = None,
    reading: Shapes | None = None,
) -> Scored:
    """Scores the candidates of `examples` under the weights as they stand.

    Args:
        rows: of the examples that each rank scores between two calls of `on_progress`.
        make: cuts them into forward passes.
        on_progress: told how many examples of how many are done.
        team: who shares the forward passes; None for nobody.
        reading: what the rows of a batch begin with in common is read once, within these bounds (see
            `Scorer.scores_by_reading`); None: each row is read whole.
    """
    team = team or Communicator()
    scored, losses, done = [np.empty(0)] * len(examples), np.zeros(len(examples)), 0
    batches = by_length(examples, rows, make)
    while some := list(islice(batches, team.size)):
        parts = [part for _, batch in some for part in batch.parts]
        places = [[indices[i] for i in place] for indices, batch in some for place in batch.places]
        grids = _grids(scorer, [batch for _, batch in some], team, reading)
        for part, numbers, grid in zip(parts, places, grids, strict=True):
            losses[numbers] = example_losses(grid, part.target)
            for number, row in zip(numbers, grid, strict=True):
                # Beyond an example's own candidates the grid is padding.
                scored[number] = row[: examples[number].candidates]
        done += sum(len(indices) for indices, _ in some)
        on_progress(done, len(examples))
    return Scored(scored, losses)


def _grids(
    scorer: Scorer, batches: Sequence[Batch], team: Communicator, reading: Shapes | None
) -> Sequence[np.ndarray]:
    """Scores of each micro-batch of some batches, one after the other: float64 [B, C]."""
    view = scorer.causal.view()
    parts = tuple(part for batch in batches for part in batch.parts)
    if reading is None:
        whole = Batch(parts, tuple(places for batch in batches for places in batch.places))
        pieces = [Piece(float(part.tokens.size), part.candidate.shape) for part in parts]
        return team.scatter_gather(pieces, lambda numbers: scorer.scores(whole.picked(numbers), view))

    def read(numbers: Sequence[int]) -> list[np.ndarray]:
        grids = (scorer.scores_by_reading(batches[number], view, reading) for number in numbers)
        return [np.concatenate(of_batch, axis=None) for of_batch in grids]

    # A batch is one rank's, so that what is read together does not depend on how many ranks there are.
    sizes = [sum(part.candidate.size for part in batch.parts) for batch in batches]
    pieces = [Piece(float(batch.token_count), (size,)) for batch, size in zip(batches, sizes, strict=True)]
    *ends, _ = accumulate(part.candidate.size for part in parts)
    flat = np.split(np.concatenate(team.scatter_gather(pieces, read)), ends)
    return [grid.reshape(part.candidate.shape) for grid, part in zip(flat, parts, strict=True)]


def choose(examples: Sequence[Example], scores: Sequence[np.ndarray]) -> list[str]:
    """The likeliest candidate of each example, as text."""
    return [example.candidates[int(row.argmax())] for example, row in zip(examples, scores, strict=True)]


def mean_metric(metric: str, answers: Sequence[str], examples: Sequence[Example]) -> float:
    """Mean of a metric (see `tasks.metrics.METRICS`) over the answers to some examples."""
    measure = METRICS[metric]
    return sum(measure(answer, example.gold) for answer, example in zip(answers, examples, strict=True)) / len(examples)


def majority_share(examples: Sequence[Example]) -> float | None:
    """Share of the most frequent answer: what a constant guess scores. None where examples do not share their
    candidates, and for completions."""
    if not share_candidates(examples):
        return None
    return Counter(example.target for example in examples).most_common(1)[0][1] / len(examples)


def share_candidates(examples: Sequence[Example]) -> bool:
    """Whether all examples choose among the same labels."""
    candidates = {example.candidates for example in examples}
    return len(candidates) == 1 and all(len(each) > 1 for each in candidates)
