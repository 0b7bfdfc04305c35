"""Checkpoints of a run: a snapshot of the weights, and the journal of a method that keeps one.

A MeZO run follows from its journal: it gives the weights of any step, and a snapshot only shortens the replay. A run of
another method resumes from its last snapshot, which includes the optimiser's state, and repeats the steps after it.
Both end bit-identical to an uninterrupted run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any

from ..core import events
from ..core.errors import ConfigError, DataError
from ..core.run_directory import JOURNAL, LAST_STATE, RunDirectory
from ..core.run_history import RunHistory
from ..models.slots import Slot
from ..zo.journal import JournalError, read
from .checkpoint_file import load_state, save_state
from .evaluation import Evaluation
from .methods import Method
from .session import Session

# A snapshot takes as long as writing the trained parameters to the disk. Snapshots take at most this share of a run's
# time, and are at least so many seconds apart.
_SHARE = 0.01
_SECONDS = 600.0


@dataclass
class TrainingProgress:
    """The progress of a run, which a resumed run continues.

    Attributes:
        step: steps done.
        best_step, best: the best evaluation on the validation split, before `step`; None before the first.
        unsettled: `step` was evaluated; it is unknown whether its state was saved as the best.
        losses: of the batch of each step.
        train_seconds, tokens, padded_tokens, ties: sums over the steps.
        stopped_by: the reason for the end of the run: `steps`, `time` or `plateau`.
        validation_seconds: total time of evaluations on the validation split.
        validation_losses: of the validation split, by step, the zero-shot one under 0.
    """

    step: int = 0
    best_step: int = 0
    best: Evaluation | None = None
    unsettled: bool = False
    zero_shot: dict[str, Evaluation] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    validation_losses: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    padded_tokens: int = 0
    ties: int = 0
    stopped_by: str = "steps"


class Checkpoints:
    """Saves a run so that it can resume, and resumes it."""

    def __init__(self, run: RunDirectory, session: Session, method: Method, emit: events.Emit):
        self.run, self.session, self.method, self.emit = run, session, method, emit
        # Rank 0 keeps the run; the run directories of the others are temporary.
        self._keeps = session.team.rank == 0
        self._last = time.monotonic()
        self._cost = 0.0

    def begin(self) -> None:
        """Starts the journal of a new run, if its method keeps one.

        Raises:
            OSError: it cannot be written.
        """
        if self._keeps:
            self.method.open_journal(self.run.path / JOURNAL, self.session.weights_sha256)

    def resume(self) -> TrainingProgress:
        """Restores weights and method to the last step of the run.

        Raises:
            DataError, ModelError: journal or snapshot is damaged, or of other parameters. ConfigError: more steps are
            done than the configuration has.
        """
        snapshot = self._load_snapshot()
        if not self.method.has_journal:
            self._check_steps(snapshot)
            self._note(snapshot, snapshot)
            return self._progress(snapshot)
        path = self.run.path / JOURNAL
        try:
            journal = read(path)
        except FileNotFoundError:
            # The run ended before it began to train.
            self.begin()
            return self._progress(0)
        except JournalError as error:
            raise DataError(str(error), error.fix or "start a new run: its weights cannot be restored") from None
        if snapshot > len(journal):
            raise DataError(
                f"{path.name} ends at step {len(journal)}, before the snapshot of step {snapshot}",
                "start a new run: its journal was cut",
            )
        self._check_steps(len(journal))
        self.method.resume(journal, snapshot)
        if self._keeps:
            self.method.open_journal(path, self.session.weights_sha256, after=journal)
        self._note(len(journal), snapshot, journal.torn_bytes)
        past = self._progress(len(journal))
        past.losses = [step.loss for step in journal]
        return past

    def keep(self, step: int) -> None:
        """Writes a snapshot of step `step` if one is due.

        Raises:
            DoesNotFit: the disk is full; the snapshot before is whole.
        """
        if self._keeps and time.monotonic() - self._last >= max(_SECONDS, self._cost / _SHARE):
            self.snapshot(step)

    def close(self, step: int) -> None:
        """Saves a run that ends, for any reason, so that it can resume after step `step`.

        Raises:
            OSError: the disk fails. DoesNotFit: it is full.
        """
        self.method.close()
        if step and self._keeps and not self.method.has_journal:
            self.snapshot(step)

    def snapshot(self, step: int) -> None:
        """Writes a snapshot of step `step` in place of the last one.

        Raises:
            DoesNotFit: the disk is full; the snapshot before is whole.
        """
        began = time.monotonic()
        parameters = {**self.session.trained_parameters(), **self.method.state()}
        size = save_state(self.run.path / LAST_STATE, parameters, step)
        self._last = time.monotonic()
        self._cost = self._last - began
        self.emit(events.Saved(str(LAST_STATE), step, size))

    def _check_steps(self, step: int) -> None:
        if step > self.session.config.steps:
            raise ConfigError(
                f"the run has done {step} steps already, and --steps is {self.session.config.steps}",
                "give at least as many --steps",
            )

    def _load_snapshot(self) -> int:
        """Restores parameters and method from the last snapshot; returns its step, 0 without one."""
        path = self.run.path / LAST_STATE
        if not path.exists():
            return 0
        state = self.method.state()
        holder: dict[str, Any] = dict(state)
        slots = {**self.session.causal.slots, **{name: Slot(holder, name) for name in state}}
        step = load_state(path, slots, (*self.session.trainable.names, *state))
        self.method.restore(holder, step)
        return step

    def _progress(self, step: int) -> TrainingProgress:
        """The progress after the first `step` steps, read from the events."""
        timed = list(self.run.events())
        history = RunHistory.read(timed)
        # An evaluation after `step` itself is repeated.
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
        past.best = past.zero_shot.get("validation")
        past.validation_losses = {each.evaluation.step: each.evaluation.loss for each in history.validation}
        for event in (each.evaluation for each in history.validation):
            if event.kind == "validation":
                past.validation_seconds += event.seconds
                if (outcome := _evaluation(event)).better_than(past.best):
                    past.best_step, past.best = event.step, outcome
        # In all events: an earlier resumption from this step may have been killed before it repeated the evaluation.
        past.unsettled = any(
            isinstance(event, events.Evaluated) and event.kind == "validation" and event.step == step
            for event, _ in timed
        )
        return past

    def _note(self, step: int, snapshot: int, torn_bytes: int = 0) -> None:
        self.emit(events.Resumed(step))
        text = f"the run continues after step {step}"
        if step > snapshot:
            text += f", {step - snapshot} steps of which were replayed from its journal"
        if torn_bytes:
            text += f" (whose last {torn_bytes} bytes were cut off in the middle of a step)"
        self.emit(events.Note(text))


def _evaluation(event: events.Evaluated) -> Evaluation:
    return Evaluation(**{each.name: getattr(event, each.name) for each in fields(Evaluation)})


def check_same(run: RunDirectory, now: dict[str, Any]) -> None:
    """Checks that a run resumes with the data, base weights and noise version that it began with.

    Args:
        now: the content of environment.json now.

    Raises:
        ConfigError: it does not; every difference is named.
    """
    began = run.environment() or {}
    names = {"base_weights_sha256": "base weights", "data_sha256": "data", "noise_version": "noise version"}
    problems = [
        f"{what}: {began[key]} when the run began, {now[key]} now"
        for key, what in names.items()
        if key in began and began[key] != now[key]
    ]
    if problems:
        raise ConfigError(
            f"the run {run.id} cannot go on: " + "; ".join(problems),
            f"bring back what it began with, or start it anew with `mlxzo train --config {run.path / 'config.yaml'}`",
        )
