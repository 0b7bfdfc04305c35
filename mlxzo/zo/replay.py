"""Weights from a journal: the updates of a run are repeated without a forward pass.

Noise and updates are generated from names and recorded factors, so the result is bit-identical to the run's, on any
backend whose float32 additions and multiplications round by IEEE 754. Several steps share one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from .apply import Update, apply_updates
from .inplace import Slot
from .journal import Journal
from .perturb import Direction

# Steps that share a pass, so that reading and writing the weights is a small part of the work.
_STEPS_A_PASS = 16


def replay(
    slots: Mapping[str, Slot],
    journal: Journal,
    start: int = 0,
    stop: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    origin: Mapping[str, mx.array] | None = None,
) -> None:
    """Updates parameters from their state after `start` steps of a run to their state after `stop` steps.

    Args:
        slots: places of the parameters that the journal names; others are left alone.
        stop: None for all recorded steps.
        on_progress: called after each pass with the steps done and their total.
        origin: the parameters before the first step of a run that pulls towards them; None where `start` is 0.
    """
    stop = len(journal) if stop is None else stop
    names = [parameter.name for parameter in journal.header.parameters]
    seed = int(journal.header.config["seed"])
    if origin is None and journal.header.pulls and any(update.state[1] for update in journal):
        if start:
            raise ValueError("a replay from a later step needs the parameters before the first")
        origin = {name: slots[name].get() for name in names}
    for first in range(start, stop, _STEPS_A_PASS):
        last = min(stop, first + _STEPS_A_PASS)
        updates = [recorded_update(journal, step) for step in range(first, last)]
        apply_updates(slots, names, updates, seed, origin)
        on_progress(last - start, stop - start)


def recorded_update(journal: Journal, step: int) -> Update:
    """The update of the step numbered `step`, from 0."""
    header, recorded = journal.header, journal[step]
    seed, kind = int(header.config["seed"]), header.config["directions"]
    lengths = {parameter.name: parameter.length for parameter in header.parameters}
    terms = [(Direction(seed, step, index, kind, lengths), factor) for index, factor in enumerate(recorded.factors)]
    return Update(step, terms, recorded.decay, recorded.state[1] if header.pulls else 0.0)
