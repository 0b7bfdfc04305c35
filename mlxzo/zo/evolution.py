"""Evolution strategies: the step that follows from the rewards of a population around the weights.

A population has two members for each of k directions, at w + eps z_j and at w - eps z_j (antithetic sampling). Salimans
et al. 2017 (arXiv 1703.03864), with rewards z-scored over the members as in Qiu et al. 2025 (arXiv 2509.24372):

    w += lr eps / (2 k) sum_m A_m s_m z_m,    A_m = (R_m - mean R) / std R

with s_m the side of member m. lr is a length in units of eps, which suits every reward and every scale of perturbation.
Centred ranks, which Salimans et al. take instead, guard against rewards without a bound; a z-score over N members is
bounded as well, by the root of N - 1. Everything is NumPy float64.
"""

from __future__ import annotations

import numpy as np


def evolution_factors(rewards: np.ndarray, lr: float, eps: float) -> np.ndarray:
    """The factors c_j of the step w -= sum_j c_j z_j: float64 [k]; all 0 where every member has the same reward.

    Args:
        rewards: of the members w + eps z_0, w - eps z_0, w + eps z_1, ...: [2 k].
        lr: length of a step, in units of `eps`.
    """
    if rewards.max() == rewards.min():
        return np.zeros(len(rewards) // 2)
    scores = (rewards - rewards.mean()) / rewards.std()
    return -lr * eps * (scores[::2] - scores[1::2]) / len(rewards)


def changed_share(answers: np.ndarray) -> float:
    """The share of answers that differ from the one that most members give to the same prompt.

    Args:
        answers: an identity of each answer: [members, prompts].
    """
    if answers.size == 0:
        return 0.0
    same = 0
    for column in answers.T:
        _, counts = np.unique(column, return_counts=True)
        same += int(counts.max())
    return 1.0 - same / answers.size
