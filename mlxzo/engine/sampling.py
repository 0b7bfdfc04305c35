"""The next token: greedy, or sampled from the model's probabilities. Imports no MLX.

The random number of a sample is a function of seed, answer and position, so that an answer does not depend on the other
answers of its batch, and is the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ..core.errors import Diverged


@dataclass(frozen=True)
class Sampling:
    """Temperature and nucleus sampling.

    Attributes:
        temperature: divisor of the logits; above 0.
        top_p: total probability of the likeliest tokens to sample from (nucleus sampling, Holtzman et al. 2020,
            arXiv 1904.09751); 1 for all.
        name: the seed of the random numbers, and anything else they are to depend on.
    """

    temperature: float
    top_p: float
    name: tuple[int | str, ...]

    def token(self, logits: np.ndarray, answer: int, position: int) -> int:
        """Samples the token at a position of an answer from logits [V]."""
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        if self.top_p < 1.0:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= self.top_p * weights.sum()]] = 0.0
        # In the order of the vocabulary, which does not change with the rounding of the logits.
        sums = np.cumsum(weights)
        place = np.searchsorted(sums, self._uniform(answer, position) * sums[-1], side="right")
        return int(min(place, np.flatnonzero(weights)[-1]))

    def _uniform(self, answer: int, position: int) -> float:
        """A uniform number in [0, 1), a function of `name` and its arguments alone."""
        digest = blake2b(json.dumps([*self.name, answer, position]).encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def next_tokens(
    logits: np.ndarray, sampling: Sampling | None, answers: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """The next token of each answer from logits [R, V]: sampled, or the likeliest without `sampling`.

    Raises:
        Diverged: logits are not numbers.
    """
    # NumPy's argmax is the place of the first NaN, if there is one.
    likeliest = logits.argmax(axis=-1)
    check_numbers(np.take_along_axis(logits, likeliest[:, None], axis=-1))
    if sampling is None:
        return likeliest.tolist()
    return [
        sampling.token(row, answer, position) for row, answer, position in zip(logits, answers, positions, strict=True)
    ]


def check_numbers(logits: np.ndarray) -> None:
    """Raises Diverged if any of the logits, or log-probabilities, is not a number."""
    if np.isnan(logits).any():
        raise Diverged.not_finite("the probability of the next token")


# Most tokens of an answer.
LONGEST = 4096
