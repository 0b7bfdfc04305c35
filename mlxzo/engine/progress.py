"""The progress of a run, which a resumed run continues, and how it is read from the run's events."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from ..core import events
from ..core.run_history import RunHistory
from .evaluation import Evaluation


@dataclass
class TrainingProgress:
    """The progress of a run after `step` steps.

    Attributes:
        best_step, best: the best evaluation on the validation split, before `step`; None before the first.
        unsettled: `step` was evaluated; it is unknown whether its state was saved as the best.
        losses: of the batch of each step.
        train_seconds, tokens, padded_tokens, ties: sums over the steps.
        stopped_by: the reason for the end of the run: `steps`, `time` or `plateau`.
        validation_seconds: total time of evaluations on the validation split.
        validations: evaluations of the validation split, by step, the zero-shot one under 0.
    """

    step: int = 0
    best_step: int = 0
    best: Evaluation | None = None
    unsettled: bool = False
    zero_shot: dict[str, Evaluation] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    validations: dict[int, Evaluation] = field(default_factory=dict)
    tokens: int = 0
    padded_tokens: int = 0
    ties: int = 0
    stopped_by: str = "steps"

    def add_evaluation(self, step: int, outcome: Evaluation) -> bool:
        """Takes an evaluation on the validation split after step `step`; returns whether it is the best so far."""
        self.validations[step] = outcome
        best = outcome.better_than(self.best)
        if best:
            self.best_step, self.best = step, outcome
        return best


@dataclass(frozen=True)
class Recorded:
    """What the events tell of a run after some of its steps.

    Attributes:
        past: the progress, without evaluations after the last step itself, which are repeated.
        evaluated: every evaluation on the validation split, also of later steps, which are made again.
        lost: numbers (from 0) of the steps that the events lack, of which `past` has neither loss nor sums.
    """

    past: TrainingProgress
    evaluated: dict[int, Evaluation]
    lost: list[int]

    @staticmethod
    def read(timed: Iterable[tuple[events.Event, float]], step: int) -> Recorded:
        """Reads the events, as `RunDirectory.events` gives them, up to step `step`."""
        timed = list(timed)
        history = RunHistory.read(timed)
        history.back_to(step, step - 1)
        past = TrainingProgress(
            step,
            zero_shot={split: _evaluation(event) for split, event in history.zero_shot.items()},
            losses=history.steps["loss"].tolist(),
            train_seconds=history.training_seconds,
            tokens=history.total("tokens"),
            padded_tokens=history.total("padded_tokens"),
            ties=history.total("ties"),
        )
        for event in sorted((each.evaluation for each in history.validation), key=lambda event: event.step):
            past.add_evaluation(event.step, _evaluation(event))
            past.validation_seconds += event.seconds if event.kind == "validation" else 0.0
        evaluated = {
            event.step: _evaluation(event)
            for event, _ in timed
            if isinstance(event, events.Evaluated) and event.split == "validation"
        }
        # In all events: an earlier resumption from this step may have been killed before it repeated the evaluation.
        past.unsettled = step in evaluated
        there = set(history.steps["step"])
        return Recorded(past, evaluated, [number for number in range(step) if number + 1 not in there])


def _evaluation(event: events.Evaluated) -> Evaluation:
    found = Evaluation(**{each.name: getattr(event, each.name) for each in fields(Evaluation)})
    # JSON has no number that is not finite; such a one is written as null.
    lost = {name: math.nan for name in ("value", "loss") if getattr(found, name) is None}
    return replace(found, **lost)
