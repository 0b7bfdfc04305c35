"""Learning-rate schedules."""

from __future__ import annotations

import math


def learning_rate(lr: float, schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """The learning rate at `step`, from 0, of a run of `steps` steps.

    Args:
        schedule: `constant`, or a fall from `lr` to zero: `linear` or `cosine` (half a period).
        warmup: steps over which a factor rises linearly to 1.
    """
    done = step / steps
    if schedule == "linear":
        lr *= 1.0 - done
    elif schedule == "cosine":
        lr *= 0.5 * (1.0 + math.cos(math.pi * done))
    return lr * min(1.0, (step + 1) / (warmup + 1))
