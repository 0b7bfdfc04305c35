"""Checkpoints of a run: a snapshot of the weights, and the journal of a method that keeps one.

A MeZO run follows from its journal: it gives the weights of any step, and a snapshot only shortens the replay. A run of
another method resumes from its last snapshot, which includes the optimiser's state, and repeats the steps after it.
Both end bit-identical to an uninterrupted run, except that gradients on a GPU do not have the same last bits twice (see
`methods.gradients`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

from ..core import events
from ..core.errors import ConfigError, DataError
from ..core.run_directory import BEST_STATE, JOURNAL, LAST_STATE, RESULT, RunDirectory
from ..models.slots import Slot
from ..zo.journal import Journal, JournalError, read
from .batching import batch_indices
from .checkpoint_file import load_state, save_state, saved_step
from .evaluation import Evaluation
from .methods import Method
from .progress import Recorded, TrainingProgress
from .session import Session

# A snapshot takes as long as writing the trained parameters to the disk. Snapshots take at most this share of a run's
# time, and are at least so many seconds apart.
_SHARE = 0.01
_SECONDS = 600.0

Evaluate = Callable[[str, str, int], Evaluation]
"""Evaluates the weights as they stand: the kind of the evaluation, the split, and the step of the weights."""


class Checkpoints:
    """Saves a run so that it can resume, and resumes it.

    Attributes:
        best_path: the file of the best state.
    """

    def __init__(self, run: RunDirectory, session: Session, method: Method, emit: events.Emit):
        self.run, self.session, self.method, self.emit = run, session, method, emit
        # Rank 0 keeps the run; the run directories of the others are temporary.
        self._keeps = session.team.rank == 0
        self.best_path = run.path / BEST_STATE
        self._last = time.monotonic()
        self._cost = 0.0

    def begin(self) -> None:
        """Starts the journal of a new run, if its method keeps one.

        Raises:
            OSError: it cannot be written.
        """
        if self._keeps:
            self.method.open_journal(self.run.path / JOURNAL, self.session.weights_sha256)

    def resume(self, evaluate: Evaluate) -> TrainingProgress:
        """Restores weights and method to the last step of the run.

        A power failure may leave files of different ages. What the events lack is measured again, and in the end the
        best state is that of the best step.

        Args:
            evaluate: evaluates the weights as they stand, which are the base weights now.

        Raises:
            DataError, ModelError: journal or snapshot is missing, damaged, or of other parameters. ConfigError: more
            steps are done than the configuration has.
        """
        journal = self._read_journal() if self.method.has_journal else None
        step = self._snapshot if journal is None else len(journal)
        if step > self.session.config.steps:
            raise ConfigError(
                f"the run has done {step} steps already, and --steps is {self.session.config.steps}",
                "give at least as many --steps",
            )
        timed = list(self.run.events())
        start = self._measure_lost(timed, step, journal, evaluate) if step else 0
        recorded = Recorded.read(timed, step)
        past = recorded.past
        self._add_lost_steps(recorded, journal)
        if step:
            start = self._agree_on_best(recorded, journal, start)
        if start < self._snapshot <= step:
            start = self._load_snapshot()
        if journal is not None:
            self.method.resume(journal, start)
            past.losses = [each.loss for each in journal]
            if self._keeps:
                self.method.open_journal(self.run.path / JOURNAL, self.session.weights_sha256, after=journal)
        elif self.method.has_journal:
            self.begin()
        # From here on the run is not complete.
        (self.run.path / RESULT).unlink(missing_ok=True)
        self._note(step, start, 0 if journal is None else journal.torn_bytes)
        return past

    def keep(self, step: int) -> None:
        """Writes a snapshot of step `step` if one is due.

        Raises:
            DataError: the run directory is gone.
            DoesNotFit: the disk is full; the snapshot before is whole.
        """
        self.run.check_in_place()
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
        # A snapshot must not outlive the records of its steps.
        self.method.sync()
        parameters = {**self.session.trained_parameters(), **self.method.state()}
        size = save_state(self.run.path / LAST_STATE, parameters, step)
        self._last = time.monotonic()
        self._cost = self._last - began
        self.emit(events.Saved(str(LAST_STATE), step, size))

    def save_best(self, step: int) -> None:
        """Saves the weights, of step `step`, as the best state.

        Raises:
            DoesNotFit: the disk is full; the best state before is whole.
        """
        self.run.check_in_place()
        self.emit(events.Phase("save"))
        self.method.sync()
        size = save_state(self.best_path, self.session.trained_parameters(), step)
        self.emit(events.Saved(str(BEST_STATE), step, size))

    def _read_journal(self) -> Journal | None:
        """The journal of the run; None where the run ended before it began to train."""
        path = self.run.path / JOURNAL
        try:
            return read(path)
        except FileNotFoundError:
            if self._snapshot or saved_step(self.best_path) or self.run.last_event(events.Step):
                raise DataError(
                    f"{path} is missing, without which the run cannot go on",
                    "bring it back from a copy, or start a new run",
                ) from None
            return None
        except JournalError as error:
            raise DataError(str(error), error.fix or "start a new run: its weights cannot be restored") from None

    @cached_property
    def _snapshot(self) -> int:
        """The step of the last snapshot; 0 without one, and for a damaged one that the journal makes up for."""
        path = self.run.path / LAST_STATE
        step = saved_step(path)
        if step is None and path.exists() and not self.method.has_journal:
            self._load_snapshot()
        return step or 0

    def _load_snapshot(self) -> int:
        """Restores parameters and method from the last snapshot; returns its step."""
        state = self.method.state()
        holder: dict[str, Any] = dict(state)
        slots = {**self.session.causal.slots, **{name: Slot(holder, name) for name in state}}
        step = load_state(self.run.path / LAST_STATE, slots, (*self.session.trainable.names, *state))
        self.method.restore(holder, step)
        return step

    def _add_lost_steps(self, recorded: Recorded, journal: Journal | None) -> None:
        """Adds the steps that the events lack to the sums; their time is taken to be that of the others."""
        session, past, lost = self.session, recorded.past, recorded.lost
        examples, config = session.splits["train"], session.config
        for step in lost:
            batch = session.batch(
                [examples[i] for i in batch_indices(len(examples), config.batch_size, config.seed, step)]
            )
            past.tokens += batch.token_count
            past.padded_tokens += batch.padded_token_count
            if journal is not None:
                past.ties += sum(derivative == 0.0 for derivative in journal[step].derivatives)
        if known := past.step - len(lost):
            past.train_seconds *= past.step / known

    def _measure_lost(
        self, timed: list[tuple[events.Event, float]], step: int, journal: Journal | None, evaluate: Evaluate
    ) -> int:
        """Evaluates the base weights and the best state again where the events lack that, and adds it to them.

        Returns:
            The step of the weights that the model has afterwards.
        """
        there = [event for event, _ in timed if isinstance(event, events.Evaluated)]

        def again(kind: str, split: str, at: int) -> None:
            self.emit(events.Phase("baseline" if kind == "zero-shot" else "evaluate"))
            outcome = evaluate(kind, split, at)
            timed.append((events.Evaluated(kind=kind, split=split, step=at, best=True, **asdict(outcome)), time.time()))

        for split in ("validation", "test"):
            if self.session.splits[split] and not any((e.kind, e.split) == ("zero-shot", split) for e in there):
                again("zero-shot", split, 0)
        held = saved_step(self.best_path)
        # A state that is ahead of the journal is made again, and that of the last step evaluated again in any case.
        if not held or held == step or (journal is not None and held > step):
            return 0
        if any((e.split, e.step) == ("validation", held) for e in there):
            return 0
        load_state(self.best_path, self.session.causal.slots, self.session.trainable.names)
        again("validation", "validation", held)
        return held

    def _agree_on_best(self, recorded: Recorded, journal: Journal | None, start: int) -> int:
        """Brings together the best step, which the events tell, and the best state.

        Args:
            start: the step of the weights that the model has.

        Returns:
            That step afterwards.
        """
        past, held = recorded.past, saved_step(self.best_path)
        if held == past.step:
            # It was the best when it was saved, and is evaluated again.
            past.unsettled, past.best = True, None
        elif held != past.best_step and journal is not None:
            # The state is lost, or of a step that is still to come: that of the best step follows from the journal.
            if start < self._snapshot <= past.best_step:
                start = self._load_snapshot()
            self.method.replay(journal, start, past.best_step)
            self.save_best(past.best_step)
            start = past.best_step
        elif held != past.best_step:
            past.best_step, past.best = (0, None) if held is None else (held, recorded.evaluated[held])
        return start

    def _note(self, step: int, start: int, torn_bytes: int) -> None:
        self.emit(events.Resumed(step))
        text = f"the run continues after step {step}"
        if step > start:
            text += f", {step - start} steps of which were replayed from its journal"
        if torn_bytes:
            text += f" (whose last {torn_bytes} bytes, of an interrupted write, were cut off)"
        if self._snapshot > step:
            text += f"; the snapshot of step {self._snapshot} is not used, since the journal ends before it"
        self.emit(events.Note(text))


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
            "bring back what it began with, or start it anew with `mlxzo train --config "
            f"{shlex.quote(str(run.path / 'config.yaml'))}`",
        )
