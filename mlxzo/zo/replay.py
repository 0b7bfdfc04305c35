"""Weights from a journal: the updates of a run are repeated without a forward pass.

Noise and updates are generated from names and recorded factors, so the result is bit-identical to the run's, on any
backend whose float32 additions and multiplications round by IEEE 754. Several steps share one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .apply import Terms, Update, apply_updates
from .inplace import Slot
from .journal import Header, Journal, JournalStep
from .perturb import Direction
from .update_rules import Momentum

# Steps that share a pass, so that reading and writing the weights is a small part of the work.
_STEPS_A_PASS = 16


def replay(
    slots: Mapping[str, Slot],
    journal: Journal,
    start: int = 0,
    stop: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Updates parameters from their state after `start` steps of a run to their state after `stop` steps.

    Args:
        slots: places of the parameters that the journal names; others are left alone.
        stop: None for all recorded steps.
        on_progress: called after each pass with the steps done and their total.
    """
    stop = len(journal) if stop is None else stop
    past = Replayed(journal.header)
    names = [parameter.name for parameter in journal.header.parameters]
    # Momentum refers to steps before `start`, whose own updates are applied already.
    for step in range(max(0, start - past.window), start):
        past.update(step, journal[step])
    for first in range(start, stop, _STEPS_A_PASS):
        last = min(stop, first + _STEPS_A_PASS)
        apply_updates(slots, names, [past.update(step, journal[step]) for step in range(first, last)], past.seed)
        on_progress(last - start, stop - start)


class Replayed:
    """The updates of a run, from the recorded steps in order."""

    def __init__(self, header: Header):
        config = header.config
        self.seed = int(config["seed"])
        self._kind = config["directions"]
        self._lengths = {parameter.name: parameter.length for parameter in header.parameters}
        self._momentum = Momentum(float(config["momentum"]))
        self.window = self._momentum.window

    def update(self, step: int, recorded: JournalStep) -> Update:
        """The update of the step numbered `step`; to be called in order of steps."""
        return Update(step, self._momentum.terms(self.own_terms(step, recorded)), recorded.decay)

    def own_terms(self, step: int, recorded: JournalStep) -> Terms:
        """The step's own terms, without the momentum of earlier steps."""
        return [
            (Direction(self.seed, step, index, self._kind, self._lengths), factor)
            for index, factor in enumerate(recorded.factors)
        ]
