"""Which token comes next: the likeliest one, or one drawn by the model's probabilities.

A draw is a function of what names it, so an answer is the same whatever is written beside it, on every machine, and
however often. Nothing here imports MLX.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """Tokens drawn by their probabilities.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_p: only the likeliest tokens that together have this probability are drawn (nucleus sampling, Holtzman et
            al. 2020, arXiv 1904.09751); 1 for all.
        name: what the draws follow from, beside the answer and the place in it: a seed, and whatever else.
    """

    temperature: float
    top_p: float
    name: tuple[int | str, ...]

    def token(self, logits: np.ndarray, answer: int, position: int) -> int:
        """The token that is drawn as number `position` of an answer, from logits [V]."""
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        if self.top_p < 1.0:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= self.top_p * weights.sum()]] = 0.0
        # In the order of the vocabulary: rounding of the logits cannot move a token to another place.
        sums = np.cumsum(weights)
        place = np.searchsorted(sums, self._uniform(answer, position) * sums[-1], side="right")
        return int(min(place, np.flatnonzero(weights)[-1]))

    def _uniform(self, answer: int, position: int) -> float:
        """A number from 0 up to 1 that follows from its arguments alone."""
        digest = blake2b(json.dumps([*self.name, answer, position]).encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def next_tokens(
    logits: np.ndarray, sampling: Sampling | None, answers: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """The next token of each answer, from logits [R, V]: the likeliest, or with `sampling` a drawn one."""
    if sampling is None:
        return logits.argmax(axis=-1).tolist()
    return [
        sampling.token(row, answer, position) for row, answer, position in zip(logits, answers, positions, strict=True)
    ]


# Tokens of an answer.
LONGEST = 4096
