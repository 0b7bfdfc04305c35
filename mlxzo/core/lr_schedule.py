"""How the learning rate changes over a run."""

from __future__ import annotations

import math


def learning_rate(lr: float, schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """The rate at `step` (from 0): `constant`, or falling to zero along a line (`linear`) or half a `cosine`.

    The first `warmup` steps rise to it along a line.
    """
    done = step / steps
    if schedule == "linear":
        lr *= 1.0 - done
    elif schedule == "cosine":
        lr *= 0.5 * (1.0 + math.cos(math.pi * done))
    return lr * min(1.0, (step + 1) / (warmup + 1))
