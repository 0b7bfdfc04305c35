"""Drawn tokens follow the model's probabilities, and nothing else than what names the draw."""

from __future__ import annotations

import numpy as np
import pytest

from mlxzo.core.errors import Diverged
from mlxzo.engine.sampling import Sampling, next_tokens

LOGITS = np.array([1.0, -2.0, 0.5, 3.0, 2.0, -1.0], np.float32)
DRAWS = 4000


def shares(sampling: Sampling) -> np.ndarray:
    drawn = [sampling.token(LOGITS, answer, position) for answer in range(DRAWS // 40) for position in range(40)]
    return np.bincount(drawn, minlength=len(LOGITS)) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probabilities_say(temperature):
    weights = np.exp(LOGITS.astype(np.float64) / temperature)
    expected = weights / weights.sum()
    # Four standard errors of a share.
    error = 4 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(shares(Sampling(temperature, 1.0, (0,))) - expected) <= error).all()


def test_top_p_leaves_the_likeliest_tokens_that_reach_it():
    # Their probabilities are .62, .23, .08, .05, .01 and .004: the first two come to .85.
    found = shares(Sampling(1.0, 0.8, (0,)))
    assert set(np.flatnonzero(found)) == {3, 4}
    assert found[3] == pytest.approx(0.62 / 0.85, abs=0.03)
    assert set(np.flatnonzero(shares(Sampling(1.0, 0.86, (0,))))) == {3, 4, 0}
    assert set(np.flatnonzero(shares(Sampling(1.0, 1e-9, (0,))))) == {3}


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 0.9, (0,))])
def test_logits_that_are_no_numbers_give_no_token(sampling):
    assert next_tokens(np.array([[0.0, -np.inf]]), sampling, [0], [0]) == [0]
    with pytest.raises(Diverged, match="not a finite number"):
        next_tokens(np.array([[0.0, 1.0], [3.0, np.nan]]), sampling, [0, 1], [0, 0])


def test_a_draw_follows_from_its_name_its_answer_and_its_place():
    grid = np.zeros((3, 1000), np.float32)
    first = next_tokens(grid, Sampling(1.0, 1.0, (0, "a")), [5, 6, 7], [0, 0, 1])
    assert next_tokens(grid[:1], Sampling(1.0, 1.0, (0, "a")), [7], [1]) == first[2:]
    assert next_tokens(grid, Sampling(1.0, 1.0, (0, "b")), [5, 6, 7], [0, 0, 1]) != first
    assert len(set(first)) == 3


def test_without_sampling_the_likeliest_token_comes():
    assert next_tokens(np.stack([LOGITS, -LOGITS]), None, [0, 1], [0, 0]) == [3, 1]
