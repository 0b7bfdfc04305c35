"""The training loop that all methods share: batch, step, now and then an evaluation, the best state kept."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from . import events
from .batching import batch_indices
from .errors import Diverged
from .evaluate import Evaluation
from .memory.meter import mlx_memory
from .methods import Method
from .runs import BEST_STATE
from .session import Session
from .states import load_state, save_state

# The smoothed loss forgets with this factor a step; speed and ETA look back this many steps.
_SMOOTHING = 0.98
_SPEED_WINDOW = 50


class Steering(Protocol):
    """What the run is asked to do while it runs (see `steering.Steering`)."""

    def wait_while_paused(self, step: int) -> None:
        """Waits while the run is paused, `step` steps done; raises Interrupted or DoesNotFit where it must end."""
        ...

    def takes(self, command: str) -> bool:
        """Whether `evaluate` or `shrink` was asked for since this last said so."""
        ...


class Trainer:
    """One run of one method. `fit` trains, keeps the best state and measures it on the test split at the end."""

    def __init__(self, session: Session, method: Method, run_path: Path, emit: events.Emit, steering: Steering):
        self.session, self.method, self.emit, self.steering = session, method, emit, steering
        self.best_path = run_path / BEST_STATE
        self.best: tuple[int, Evaluation] | None = None
        self.evaluate_seconds = 0.0
        self.train_seconds = 0.0
        self.losses: list[float] = []
        self.tokens = self.padded_tokens = 0

    def fit(self) -> dict[str, Any]:
        """Trains to the end and returns the result, as result.json holds it.

        Raises:
            Diverged: the loss is not a finite number. Interrupted: the user stopped the run. DoesNotFit: it went over
            its memory cap. In all cases the best state so far is on disk.
        """
        # Before anything is computed: from here on, whatever ends the run leaves a state that can be used.
        self._save_best(0)
        self.emit(events.Phase("baseline"))
        zero_shot = {
            split: self._evaluate("zero-shot", split, 0)
            for split in ("validation", "test")
            if self.session.splits[split]
        }
        self.best = (0, zero_shot["validation"])
        if not math.isfinite(self.best[1].loss):
            raise Diverged(
                "the loss of the model is not a finite number even before training",
                "try --dtype float32; if that does not help, the weights are damaged",
            )
        self.emit(events.Phase("train"))
        self._train()
        test = self._test()
        return self._result(zero_shot, test)

    def _train(self) -> None:
        config, examples = self.session.config, self.session.splits["train"]
        smoothed, weight = 0.0, 0.0
        recent: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)
        for step in range(config.steps):
            self._obey(step)
            began = time.perf_counter()
            indices = batch_indices(len(examples), config.batch_size, config.seed, step)
            batch = self.session.batch([examples[i] for i in indices])
            outcome = self.method.step(step, batch)
            if not math.isfinite(outcome.loss):
                raise Diverged(
                    f"the loss of step {step + 1} is not a finite number",
                    f"lower --lr (it was {config.lr:g}); the best state so far, of step {self.best[0]}, is saved",
                )
            seconds = time.perf_counter() - began
            self.train_seconds += seconds
            self.losses.append(outcome.loss)
            smoothed = _SMOOTHING * smoothed + (1 - _SMOOTHING) * outcome.loss
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
            self.tokens += batch.token_count
            self.padded_tokens += batch.padded_token_count
            recent.append((seconds, batch.token_count))
            window = sum(s for s, _ in recent)
            memory = mlx_memory()
            self.emit(
                events.Step(
                    step=step + 1,
                    steps=config.steps,
                    loss=outcome.loss,
                    smoothed_loss=smoothed / weight,
                    lr=outcome.lr,
                    directional_derivative=outcome.directional_derivative,
                    seconds=seconds,
                    tokens=batch.token_count,
                    padded_tokens=batch.padded_token_count,
                    steps_per_second=len(recent) / window,
                    tokens_per_second=sum(t for _, t in recent) / window,
                    eta_seconds=self._eta(step + 1, window / len(recent)),
                    active_bytes=memory.active_bytes,
                    peak_bytes=memory.peak_bytes,
                    cache_bytes=memory.cache_bytes,
                )
            )
            if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
                self._validate(step + 1)

    def _obey(self, step: int) -> None:
        """Does what was asked for since the last step; `step` steps are done."""
        self.steering.wait_while_paused(step)
        self._shrink_if_asked()
        if self.steering.takes("evaluate"):
            self._validate(step)

    def _shrink_if_asked(self) -> None:
        if self.steering.takes("shrink") and (done := self.session.shrink()):
            self.emit(events.Note(f"to take less memory: {done}"))

    def _validate(self, step: int) -> None:
        self.emit(events.Phase("evaluate"))
        outcome = self._evaluate("validation", "validation", step)
        if outcome.better_than(self.best[1]):
            self.best = (step, outcome)
            self._save_best(step)
        self.emit(events.Phase("train"))

    def _evaluate(self, kind: str, split: str, step: int) -> Evaluation:
        def report(event: events.Event) -> None:
            self.emit(event)
            # An evaluation is long: it too takes less memory as soon as it has to.
            self._shrink_if_asked()

        outcome = self.session.evaluate(split, report)
        self.evaluate_seconds = outcome.seconds
        best = kind == "validation" and outcome.better_than(self.best[1])
        self.emit(events.Evaluated(kind=kind, split=split, step=step, best=best, **asdict(outcome)))
        return outcome

    def _test(self) -> Evaluation | None:
        """The best state on the test split, which nothing before has used to choose anything."""
        session = self.session
        load_state(self.best_path, session.causal.slots, session.trainable.names)
        if not session.splits["test"]:
            return None
        self.emit(events.Phase("test", f"the best state, of step {self.best[0]}"))
        return self._evaluate("test", "test", self.best[0])

    def _save_best(self, step: int) -> None:
        self.emit(events.Phase("save"))
        size = save_state(self.best_path, self.session.trained_parameters())
        self.emit(events.Saved(str(BEST_STATE), step, size))

    def _eta(self, done: int, step_seconds: float) -> float:
        """Seconds left, evaluations included."""
        config = self.session.config
        evaluations = math.ceil(config.steps / config.eval_every) - done // config.eval_every
        test = len(self.session.splits["test"]) / max(1, len(self.session.splits["validation"]))
        return (config.steps - done) * step_seconds + (evaluations + test) * self.evaluate_seconds

    def _result(self, zero_shot: dict[str, Evaluation], test: Evaluation | None) -> dict[str, Any]:
        session, config = self.session, self.session.config
        window = max(1, min(_SPEED_WINDOW, len(self.losses) // 2))
        return {
            "schema": 1,
            "status": "finished",
            "model": session.resolved.name,
            "task": session.data.task.name,
            "method": config.method,
            "scope": config.scope,
            "seed": config.seed,
            "steps": config.steps,
            "metric": session.metric,
            "zero_shot": {split: asdict(outcome) for split, outcome in zero_shot.items()},
            "best": {"step": self.best[0], "validation": asdict(self.best[1])},
            "test": asdict(test) if test else None,
            "training_loss": {
                "first": sum(self.losses[:window]) / window,
                "last": sum(self.losses[-window:]) / window,
                "steps_averaged": window,
            },
            "train_seconds": self.train_seconds,
            "steps_per_second": config.steps / self.train_seconds,
            "padding_share": 1.0 - self.tokens / self.padded_tokens,
        }
