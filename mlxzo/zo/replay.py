"""Weights from a journal: the updates of a run once more, without a forward pass.

As noise and update are made anew from names and recorded factors, the result is the run's to the bit, on any backend
whose float32 additions and multiplications round as IEEE 754 says. Several steps share one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .apply import Terms, Update, apply_updates
from .inplace import Slot
from .journal import Header, Journal, JournalStep
from .perturb import Direction
from .update_rules import Momentum

# Steps that share a pass: reading and writing the weights is then a small part of the work.
_STEPS_A_PASS = 16


def replay(
    slots: Mapping[str, Slot],
    journal: Journal,
    start: int = 0,
    stop: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Moves parameters from where they stood after `start` steps of a run to where they stood after `stop`.

    Args:
        slots: where the parameters that the journal names are; others are left alone.
        stop: None for all steps that there are.
        on_progress: told the steps done and their number after each pass.
    """
    stop = len(journal) if stop is None else stop
    past = Replayed(journal.header)
    names = [parameter.name for parameter in journal.header.parameters]
    # Momentum looks back at steps whose own updates were applied before `start`.
    for step in range(max(0, start - past.window), start):
        past.update(step, journal[step])
    for first in range(start, stop, _STEPS_A_PASS):
        last = min(stop, first + _STEPS_A_PASS)
        apply_updates(slots, names, [past.update(step, journal[step]) for step in range(first, last)], past.seed)
        on_progress(last - start, stop - start)


class Replayed:
    """The updates of a run, from what its journal recorded of each step in turn."""

    def __init__(self, header: Header):
        config = header.config
        self.seed = int(config["seed"])
        self._kind = config["directions"]
        self._lengths = {parameter.name: parameter.length for parameter in header.parameters}
        self._momentum = Momentum(float(config["momentum"]))
        self.window = self._momentum.window

    def update(self, step: int, recorded: JournalStep) -> Update:
        """The update of the step numbered `step`; steps are to be asked for in order."""
        return Update(step, self._momentum.terms(self.own_terms(step, recorded)), recorded.decay)

    def own_terms(self, step: int, recorded: JournalStep) -> Terms:
        """What the step adds by itself, past steps' momentum aside."""
        return [
            (Direction(self.seed, step, index, self._kind, self._lengths), factor)
            for index, factor in enumerate(recorded.factors)
        ]
