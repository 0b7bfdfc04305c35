"""Label offsets: the model's preference among labels, estimated on training examples and taken out of scores.

This preference is the first thing a run learns. Until then it can be nearly all of the gradient, in few directions, and
calls for steps far too long for the rest of the run: more than ten times for SmolLM2-135M on SST-2. The lr finder
therefore measures the loss with one offset per label added (after Zhao et al. 2021, arXiv 2102.09690).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .encoding import EncodedExample
from .scoring import example_losses
from .session import Session

# Most training examples that offsets are fitted to; the error of the fit falls with their number.
_EXAMPLES = 1024


def examples_to_fit(examples: Sequence[EncodedExample]) -> Sequence[EncodedExample]:
    """The examples that offsets are fitted to; none unless all examples have the same labels."""
    labels = {example.targets for example in examples}
    return examples[:_EXAMPLES] if len(labels) == 1 and len(examples[0].targets) > 1 else ()


def label_offsets(
    session: Session, examples: Sequence[EncodedExample], on_pass: Callable[[], None]
) -> tuple[np.ndarray | float, float]:
    """Fits offsets to the scores of examples under the current weights.

    Args:
        on_pass: called after each forward pass.

    Returns:
        The offsets, float64 [C], or 0 without examples; and the decrease of the mean loss of `examples` with them.
    """
    if not examples:
        return 0.0, 0.0
    view = session.causal.view()
    grids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    size = session.config.batch_size
    for start in range(0, len(examples), size):
        batch = session.batch(examples[start : start + size])
        grids += session.scorer.scores(batch, view)
        labels += [part.target for part in batch.parts]
        on_pass()
    scores, targets = np.concatenate(grids), np.concatenate(labels)
    offsets = fit_offsets(scores, targets)
    gained = example_losses(scores, targets).mean() - example_losses(scores + offsets, targets).mean()
    return offsets, float(gained)


def fit_offsets(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Offsets [C] of mean zero that minimise the cross-entropy of scores [N, C] + offsets, by iterative scaling."""
    count = scores.shape[1]
    # A label that no example has would get an offset of minus infinity.
    right = (np.bincount(targets, minlength=count) + 0.5) / (len(targets) + 0.5 * count)
    offsets = np.zeros(count)
    for _ in range(200):
        shifted = scores + offsets
        expected = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        expected = (expected / expected.sum(axis=1, keepdims=True)).mean(axis=0)
        offsets = offsets + np.log(right / expected)
    return offsets - offsets.mean()
