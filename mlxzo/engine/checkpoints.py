"""What an interrupted run goes on from: the journal of a MeZO run, a snapshot of the weights, and the events so far.

A MeZO run is its journal: the weights of any step follow from it, and a snapshot only saves replaying from the start.
A run of another method goes on from its last snapshot, which holds the optimiser's state as well, and computes the
steps after it once more. Both end where the uninterrupted run would have ended, to the bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import Any

from ..core import events
from ..core.errors import ConfigError, DataError
from ..core.run_directory import JOURNAL, LAST_STATE, RunDirectory
from ..models.slots import Slot
from ..zo.journal import JournalError, read
from .checkpoint_file import load_state, save_state
from .evaluation import Evaluation
from .methods import Method
from .session import Session

# A snapshot costs as much as writing the trained parameters to the disk. At most this share of a run's time goes there,
# and no more than so many seconds of training lie between two.
_SHARE = 0.01
_SECONDS = 600.0


@dataclass
class TrainingProgress:
    """What a run had done when it ended.

    Attributes:
        step: steps done.
        best: the best evaluation on the validation split and its step, before `step`.
        unsettled: `step` was evaluated; whether its state was saved as the best is not known.
        losses: of the batches, a step each.
        train_seconds, tokens, padded_tokens, ties: sums over the steps.
        validation_seconds: that evaluations on the validation split took in between.
    """

    step: int = 0
    best: tuple[int, Evaluation] | None = None
    unsettled: bool = False
    zero_shot: dict[str, Evaluation] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0
    ties: int = 0


class Checkpoints:
    """Keeps a run so that it can go on, and brings it back."""

    def __init__(self, run: RunDirectory, session: Session, method: Method, emit: events.Emit):
        self.run, self.session, self.method, self.emit = run, session, method, emit
        # The other ranks have what rank 0 has, and nobody would come back to it.
        self._keeps = session.team.rank == 0
        self._last = time.monotonic()
        self._cost = 0.0

    def begin(self) -> None:
        """Starts the journal of a new run, where its method keeps one.

        Raises:
            OSError: it cannot be written.
        """
        if self._keeps:
            self.method.open_journal(self.run.path / JOURNAL, self.session.weights_sha256)

    def resume(self) -> TrainingProgress:
        """Brings weights and method to where the run ended.

        Raises:
            DataError, ModelError: journal or snapshot is damaged, or of other parameters. ConfigError: more steps are
            done than the configuration asks for.
        """
        snapshot = self._load_snapshot()
        if not self.method.has_journal:
            self._check_steps(snapshot)
            self._note(snapshot, snapshot)
            return self._past(snapshot)
        path = self.run.path / JOURNAL
        try:
            journal = read(path)
        except FileNotFoundError:
            # The run ended before it began to train.
            self.begin()
            return self._past(0)
        except JournalError as error:
            raise DataError(str(error), "start the run anew: its weights cannot be found again") from None
        if snapshot > len(journal):
            raise DataError(
                f"{path.name} ends at step {len(journal)}, before the snapshot of step {snapshot}",
                "start the run anew: its journal was cut",
            )
        self._check_steps(len(journal))
        self.method.resume(journal, snapshot)
        if self._keeps:
            self.method.open_journal(path, self.session.weights_sha256, after=journal)
        self._note(len(journal), snapshot, journal.torn_bytes)
        past = self._past(len(journal))
        past.losses = [step.loss for step in journal]
        return past

    def keep(self, step: int) -> None:
        """Writes a snapshot of step `step` if it is time for one.

        Raises:
            DoesNotFit: the disk is full; the snapshot before is whole.
        """
        if self._keeps and time.monotonic() - self._last >= max(_SECONDS, self._cost / _SHARE):
            self.snapshot(step)

    def close(self, step: int) -> None:
        """Makes sure that a run which ends, whatever the reason, can go on after step `step`.

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
        """Brings parameters and method to the last snapshot; returns its step, 0 without one."""
        path = self.run.path / LAST_STATE
        if not path.exists():
            return 0
        state = self.method.state()
        holder: dict[str, Any] = dict(state)
        slots = {**self.session.causal.slots, **{name: Slot(holder, name) for name in state}}
        step = load_state(path, slots, (*self.session.trainable.names, *state))
        self.method.restore(holder, step)
        return step

    def _past(self, step: int) -> TrainingProgress:
        """What the events tell of the first `step` steps."""
        past = TrainingProgress(step)
        steps: dict[int, events.Step] = {}
        for event, _ in self.run.events():
            if isinstance(event, events.Step) and event.step <= step:
                # Steps that were done again after an earlier interruption count once.
                steps[event.step] = event
            elif isinstance(event, events.Evaluated) and event.step <= step:
                outcome = Evaluation(**{f.name: getattr(event, f.name) for f in fields(Evaluation)})
                if event.kind == "zero-shot":
                    past.zero_shot[event.split] = outcome
                    if event.split == "validation":
                        past.best = (0, outcome)
                elif event.kind == "validation" and event.step == step:
                    past.unsettled = True
                elif event.kind == "validation":
                    past.validation_seconds += event.seconds
                    if outcome.better_than(past.best and past.best[1]):
                        past.best = (event.step, outcome)
        past.losses = [event.loss for _, event in sorted(steps.items())]
        past.train_seconds = sum(event.seconds for event in steps.values())
        past.tokens = sum(event.tokens for event in steps.values())
        past.padded_tokens = sum(event.padded_tokens for event in steps.values())
        past.ties = sum(event.ties for event in steps.values())
        return past

    def _note(self, step: int, snapshot: int, torn_bytes: int = 0) -> None:
        self.emit(events.Resumed(step))
        said = f"the run goes on after step {step}"
        if step > snapshot:
            said += f", {step - snapshot} steps of which were replayed from its journal"
        if torn_bytes:
            said += f" (whose last {torn_bytes} bytes were cut off in the middle of a step)"
        self.emit(events.Note(said))


def check_same(run: RunDirectory, now: dict[str, Any]) -> None:
    """Raises ConfigError, naming every difference, unless data and base weights are those that the run began with.

    Args:
        now: what environment.json would hold.
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
