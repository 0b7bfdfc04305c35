"""Evaluation: every example's candidates scored by likelihood, the best one taken as the answer."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .batching import Batch, EncodedExample, by_length
from .scoring import Scorer, example_losses


@dataclass(frozen=True)
class Evaluation:
    """Outcome of an evaluation: `value` of the task's metric, mean loss, and how long it took in seconds."""

    metric: str
    value: float
    loss: float
    examples: int
    majority: float | None
    seconds: float

    def better_than(self, other: Evaluation | None) -> bool:
        """By the metric; by the loss where the metric cannot tell the two apart.

        Accuracies within one standard error of a binomial share count as equal. On 100 examples that is 4 to 5
        points, so the higher accuracy would often be luck, while the loss sees small changes of every example.
        """
        if other is None:
            return True
        if self.metric == "accuracy":
            error = math.sqrt(other.value * (1.0 - other.value) / other.examples)
            if abs(self.value - other.value) > error:
                return self.value > other.value
        return self.loss < other.loss


def evaluate(
    scorer: Scorer,
    examples: Sequence[EncodedExample],
    metric: str,
    *,
    batch_size: int,
    make: Callable[[Sequence[EncodedExample]], Batch],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_scores: Callable[[int, np.ndarray], None] = lambda example, scores: None,
) -> Evaluation:
    """Scores `examples` under the weights as they stand.

    Args:
        metric: `accuracy` (argmax of the candidates' mean token log-likelihood), or `loss`.
        batch_size: examples scored between two calls of `on_progress`.
        make: cuts them into forward passes.
        on_progress: told how many examples of how many are done.
        on_scores: told the scores [C] of each example's candidates, with its place among `examples`.
    """
    started = time.perf_counter()
    correct, losses, done = 0, np.zeros(len(examples)), 0
    view = scorer.causal.view()
    for indices, batch in by_length(examples, batch_size, make):
        for part, places, scores in zip(batch.parts, batch.places, scorer.scores(batch, view), strict=True):
            correct += int((scores.argmax(axis=1) == part.target).sum())
            whole = [indices[i] for i in places]
            losses[whole] = example_losses(scores, part.target)
            for example, row in zip(whole, scores, strict=True):
                on_scores(example, row)
        done += len(indices)
        on_progress(done, len(examples))
    # Summed in the order of the examples, so that the figure does not depend on how they were batched.
    loss = float(losses.mean())
    value = loss if metric == "loss" else correct / len(examples)
    seconds = time.perf_counter() - started
    return Evaluation(metric, value, loss, len(examples), majority_share(examples), seconds)


def majority_share(examples: Sequence[EncodedExample]) -> float | None:
    """Share of the most frequent answer: what a constant guess scores. None for completions."""
    if all(len(example.targets) == 1 for example in examples):
        return None
    return Counter(example.target for example in examples).most_common(1)[0][1] / len(examples)
