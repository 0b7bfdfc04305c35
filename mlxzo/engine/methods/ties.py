"""Detection of runs whose objective gives no signal: most directions have the same loss on both sides."""

from __future__ import annotations

# The share of ties is judged once, after this many steps.
_STEPS = 50
_MANY_TIES = 0.3


class TieDetector:
    """Reports once, after the first steps of a run, that most of its directions are ties.

    Args:
        queries: directions per step.
    """

    def __init__(self, queries: int):
        self._queries = queries
        self._steps = self._ties = 0

    def after(self, ties: int) -> str:
        """Note for the user after a step with `ties` directions without signal; empty in most cases."""
        self._steps, self._ties = self._steps + 1, self._ties + ties
        share = self._ties / (self._queries * self._steps)
        if self._steps != _STEPS or share <= _MANY_TIES:
            return ""
        return (
            f"on {share:.0%} of the directions so far both sides gave the same loss, which is no signal: a larger "
            "--batch-size or --eps gives fewer such directions, and --objective soft-accuracy none"
        )
