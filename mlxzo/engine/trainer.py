"""The training loop of all methods: batch, step, periodic evaluation, best state."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from ..core import events
from ..core.errors import Diverged, DoesNotFit, Interrupted
from ..core.meter import mlx_memory
from ..core.metrics import metric_named
from ..models.loading import fingerprint
from .batching import SCORED_AT_ONCE, Batch, batch_indices, by_length
from .checkpoint_file import load_state
from .checkpoints import Checkpoints
from .distributed.communicator import Request
from .evaluation import SHOWN_CHARACTERS, Evaluation, Evaluator
from .methods import Method, PopulationResult
from .methods.ties import TieDetector
from .objectives import sources
from .progress import TrainingProgress
from .session import Session

# Decay of the smoothed loss per step; steps over which speed and ETA are averaged.
_SMOOTHING = 0.98
_SPEED_WINDOW = 50
# Steps after which the speed of a run is known: the first ones compile kernels.
_STEPS_TO_KNOW = 3
# A validation loss that falls by less than this share does not count as lower.
_LEAST_GAIN = 1e-3
# Steps between comparisons of all ranks' weights.
_CHECK_EVERY = 100
# Steps between samples of what a population writes, and the prompts in each.
_ANSWERS_EVERY, _SHOWN = 5, 3


class Control(Protocol):
    """The requests to a run (see `runtime.control.RunControl`)."""

    def wait_while_paused(self, step: int, serve: Callable[[], bool]) -> None:
        """Waits while the run is paused, `step` steps done; raises Interrupted or DoesNotFit where it must end.

        Args:
            serve: carries out the other requests, and returns whether it evaluated.
        """
        ...

    def consume(self, request: Request) -> bool:
        """Returns whether the run has this request, EVALUATE or SHRINK, which is then done with."""
        ...

    def is_over(self, late: bool) -> bool:
        """Returns whether the time limit is reached, by the clock of this process (`late`) or another's."""
        ...


class Trainer:
    """One run of one method. `fit` trains, keeps the best state and measures it on the test split at the end."""

    def __init__(self, session: Session, method: Method, checkpoints: Checkpoints, emit: events.Emit, control: Control):
        self.session, self.method, self.checkpoints = session, method, checkpoints
        self.emit, self.control = emit, control
        self.team, self.evaluator = session.team, Evaluator(session)
        self.past = TrainingProgress()
        self.evaluate_seconds = 0.0

    def fit(self, *, resume: bool = False) -> dict[str, Any]:
        """Trains to the end and returns the content of result.json.

        Args:
            resume: continue where the run was interrupted.

        Raises:
            Diverged: the loss is not finite, or far above where it began. Interrupted: the user stopped the run.
            DoesNotFit: it went over its memory cap. In all cases the best state so far is on disk.
        """
        self.team.synchronise()
        if resume:
            self.past = self.checkpoints.resume(self._evaluate)
        else:
            self.checkpoints.begin()
        if self.past.step == 0:
            self._begin()
        try:
            self._train()
        except (Interrupted, DoesNotFit):
            # On a full disk the last snapshot stays as it is.
            with contextlib.suppress(OSError, DoesNotFit):
                self.checkpoints.close(self.past.step)
            raise
        self.checkpoints.close(self.past.step)
        sha256 = fingerprint(self.session.trained_parameters())
        self.team.same("weights after the last step", sha256)
        test = self._test()
        return self._result(test, sha256)

    def _begin(self) -> None:
        """Saves the state before the first step and evaluates it."""
        self.past = TrainingProgress()
        # First of all: from here on, a run that ends for any reason leaves a state that can be used.
        self.checkpoints.save_best(0)
        self.emit(events.Phase("baseline"))
        for split in ("validation", "test"):
            if self.session.splits[split]:
                self.past.zero_shot[split] = self._evaluate("zero-shot", split, 0)
        self.past.add_evaluation(0, self.past.zero_shot["validation"])

    def _train(self) -> None:
        config, examples, past = self.session.config, self.session.splits["train"], self.past
        if past.step and (past.unsettled or self._is_due(past.step) or self._out_of_time):
            self._validate(past.step)
        smoothed, weight = 0.0, 0.0
        for loss in past.losses:
            smoothed, weight = _smooth(smoothed, loss), _smooth(weight, 1.0)
        # A part of the first step, which could not be taken without it.
        cached_seconds = self._fill_cache()
        self.emit(events.Phase("train"))
        recent: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)
        filled = past.step + self._steps_to_fill
        detector = TieDetector(config.queries)
        for step in range(past.step, config.steps):
            if step == filled:
                # Steps that fill the cache are slower than all later ones.
                recent.clear()
            # Before the step: a run that resumes may have been killed after its last one.
            if self._is_over():
                break
            self._serve_requests(step)
            began, sent = time.perf_counter(), self.team.bytes_sent
            indices = batch_indices(len(examples), config.batch_size, config.seed, step)
            batch = self.session.batch([examples[i] for i in indices])
            outcome = self.method.step(step, batch)
            if not math.isfinite(outcome.loss):
                raise self._diverged(f"the loss of step {step + 1} is not a finite number")
            own_seconds = time.perf_counter() - began
            seconds, cached_seconds = own_seconds + cached_seconds, 0.0
            if outcome.note:
                self.emit(events.Note(outcome.note))
            if outcome.population is not None:
                self._tell_population(step + 1, outcome.population, batch)
            past.step = step + 1
            past.train_seconds += seconds
            past.losses.append(outcome.loss)
            smoothed, weight = _smooth(smoothed, outcome.loss), _smooth(weight, 1.0)
            past.tokens += batch.token_count
            past.padded_tokens += batch.padded_token_count
            recent.append((own_seconds, batch.token_count))
            window = sum(s for s, _ in recent)
            memory = mlx_memory()
            steps = self._expected_steps(step + 1, window / len(recent))
            # Where time ends the run, the speed of its steps does not matter.
            known = steps < config.steps or (step >= filled and len(recent) >= _STEPS_TO_KNOW)
            self.emit(
                events.Step(
                    step=step + 1,
                    steps=steps,
                    loss=outcome.loss,
                    smoothed_loss=smoothed / weight,
                    lr=outcome.lr,
                    directional_derivative=outcome.directional_derivative,
                    seconds=seconds,
                    tokens=batch.token_count,
                    padded_tokens=batch.padded_token_count,
                    steps_per_second=len(recent) / window,
                    tokens_per_second=sum(t for _, t in recent) / window,
                    eta_seconds=self._eta(step + 1, steps, window / len(recent)) if known else None,
                    active_bytes=memory.active_bytes,
                    peak_bytes=memory.peak_bytes,
                    cache_bytes=memory.cache_bytes,
                    ties=outcome.ties,
                    bytes_sent=self.team.bytes_sent - sent,
                    damping=outcome.damping,
                    may_end_early=config.patience > 0,
                    example_passes=outcome.passes * batch.size,
                )
            )
            if (news := self.team.rank_stats()) is not None:
                self.emit(news)
            if self.team.size > 1 and past.step % _CHECK_EVERY == 0:
                weights = fingerprint(self.session.trained_parameters())
                self.team.same(f"weights after step {past.step}", weights)
            past.ties += outcome.ties
            if note := detector.after(outcome.ties):
                self.emit(events.Note(note))
            if self._is_due(step + 1) or self._out_of_time:
                self._validate(step + 1)
            self.checkpoints.keep(step + 1)

    def _tell_population(self, step: int, population: PopulationResult, batch: Batch) -> None:
        answers: list[dict[str, Any]] = []
        if step % _ANSWERS_EVERY == 1 and population.best and population.median:
            some = zip(sources(batch)[:_SHOWN], population.best, population.median, strict=False)
            answers = [
                {"prompt": example.prompt[-SHOWN_CHARACTERS:], "best": best, "median": median}
                for example, best, median in some
            ]
        self.emit(events.Population(step, list(population.rewards), population.eps, population.changed, answers))

    def _fill_cache(self) -> float:
        """Computes the frozen layers of all training examples, where the first step needs them all, and reports how far
        it is; returns the seconds it took."""
        session, examples, scorer = self.session, self.session.splits["train"], self.session.scorer
        # Several ranks divide the examples among themselves in the first step.
        if self._steps_to_fill != 1 or self.team.size > 1:
            return 0.0
        self.emit(events.Phase("cache"))
        done, began = 0, time.perf_counter()
        for indices, batch in by_length(examples, SCORED_AT_ONCE, session.batch):
            scorer.prefix(batch)
            done += len(indices)
            self.emit(events.Progress("caching the frozen layers", float(done), float(len(examples)), "examples"))
            self._shrink_if_requested()
            if scorer.cache is None:
                # The disk is full, or the memory short: the rest is computed in every step.
                break
        return time.perf_counter() - began

    @property
    def _steps_to_fill(self) -> int:
        """Number of steps that compute the frozen layers of their examples; later ones find them in the cache."""
        scorer = self.session.scorer
        if not scorer.layers or scorer.cache is None:
            return 0
        return math.ceil(len(self.session.splits["train"]) / self.session.config.batch_size)

    def _is_due(self, step: int) -> bool:
        """Returns whether an evaluation is due after `step` steps."""
        return step % self.session.config.eval_every == 0 or step == self.session.config.steps

    def _is_over(self) -> bool:
        """Returns whether the run ends before its last step, by time or on a plateau, after at least one step."""
        past = self.past
        if past.step and self._out_of_time:
            past.stopped_by = "time"
        elif self._on_plateau:
            past.stopped_by = "plateau"
            config = self.session.config
            what = f"{self.session.metric} has not risen" if config.writes else "loss has not fallen"
            self.emit(
                events.Note(
                    f"the validation {what} in the last {config.patience} evaluations: the run ends, and its best "
                    f"state is that of step {past.best_step}{self._more_rows_text()}"
                )
            )
        return past.stopped_by != "steps"

    def _more_rows_text(self) -> str:
        """What may help where more steps do not: training rows that the run did not use."""
        used, rows = len(self.session.splits["train"]), self.session.data.training_rows
        if used >= rows:
            return ""
        return f"; it trained on {used:,} of {rows:,} training rows, and more of them (--train-examples) may help"

    def _serve_requests(self, step: int) -> None:
        """Carries out the requests since the last step; `step` steps are done."""

        def serve() -> bool:
            self._shrink_if_requested()
            if evaluate := self.control.consume(Request.EVALUATE):
                self._validate(step)
            return evaluate

        self.control.wait_while_paused(step, serve)
        serve()

    def _shrink_if_requested(self) -> None:
        if self.control.consume(Request.SHRINK) and (done := self.session.shrink()):
            self.emit(events.Note(f"to take less memory: {done}"))

    def _validate(self, step: int) -> None:
        self.emit(events.Phase("evaluate"))
        # The events of a step must not outlive its record.
        self.method.sync()
        outcome = self._evaluate("validation", "validation", step)
        self.past.validation_seconds += outcome.seconds
        if self.past.add_evaluation(step, outcome):
            self.checkpoints.save_best(step)
        self.emit(events.Phase("train"))

    def _evaluate(self, kind: str, split: str, step: int) -> Evaluation:
        def report(event: events.Event) -> None:
            self.emit(event)
            # An evaluation is long: a request to shrink does not wait for its end.
            self._shrink_if_requested()

        try:
            outcome = self.evaluator.evaluate(split, report)
        except Diverged as error:
            if kind == "zero-shot":
                raise Diverged(f"before training {error.message}", error.fix) from None
            raise self._diverged(f"after step {step} {error.message}") from None
        if kind == "validation" and outcome.loss > self._highest_loss:
            began = self.past.zero_shot["validation"].loss
            raise self._diverged(
                f"the validation loss of step {step} is {outcome.loss:.1f}, and it began with {began:.1f}"
            )
        if split == "validation":
            self.evaluate_seconds = outcome.seconds
        best = kind == "validation" and outcome.better_than(self.past.best)
        self.emit(events.Evaluated(kind=kind, split=split, step=step, best=best, **asdict(outcome)))
        return outcome

    @property
    def _highest_loss(self) -> float:
        """The validation loss above which a run has diverged: that before training and the loss of a random token.

        Objectives other than the loss may be reached whatever becomes of it; and the best state of a run that resumes
        has not diverged.
        """
        before = self.past.zero_shot.get("validation")
        if before is None or self.session.config.objective != "loss":
            return math.inf
        return before.loss + math.log(self.session.causal.vocabulary)

    def _diverged(self, message: str) -> Diverged:
        config = self.session.config
        mended = "try --dtype float32" if config.gauss_newton else f"lower --lr (it was {config.lr:g})"
        return Diverged(message, f"{mended}; the best state so far, of step {self.past.best_step}, is saved")

    def _test(self) -> Evaluation | None:
        """Evaluates the best state on the test split, which no earlier decision has used."""
        session = self.session
        load_state(self.checkpoints.best_path, session.causal.slots, session.trainable.names)
        if not session.splits["test"]:
            return None
        self.emit(events.Phase("test", f"the best state, of step {self.past.best_step}"))
        return self._evaluate("test", "test", self.past.best_step)

    @property
    def _on_plateau(self) -> bool:
        """Returns whether the last evaluations, as many as `patience`, found no lower validation loss, or where answers
        are generated in steps no better metric.

        Evaluations that were asked for in between do not count: the run must not end earlier for them.
        """
        patience, every = self.session.config.patience, self.session.config.eval_every
        due = [outcome for step, outcome in sorted(self.past.validations.items()) if step % every == 0]
        if self.session.config.writes:
            losses = [-metric_named(outcome.metric).merit(outcome.value) for outcome in due]
        else:
            losses = [outcome.loss for outcome in due]
        return 0 < patience <= evaluations_since_the_lowest(losses)

    @property
    def _out_of_time(self) -> bool:
        limit = self.session.config.max_seconds
        seconds = self.past.train_seconds + self.past.validation_seconds
        return limit is not None and self.control.is_over(seconds >= limit)

    def _expected_steps(self, done: int, step_seconds: float) -> int:
        """Steps that the run will make: those of the configuration, or as many as fit into its time at this speed."""
        config = self.session.config
        if config.max_seconds is None:
            return config.steps
        left = config.max_seconds - self.past.train_seconds - self.past.validation_seconds
        step_seconds += self.evaluate_seconds / config.eval_every
        return min(config.steps, done + max(0, math.ceil(left / step_seconds)))

    def _eta(self, done: int, steps: int, step_seconds: float) -> float:
        """Seconds until `steps` steps are made, evaluations included."""
        every = self.session.config.eval_every
        evaluations = math.ceil(steps / every) - done // every
        test = len(self.session.splits["test"]) / max(1, len(self.session.splits["validation"]))
        return (steps - done) * step_seconds + (evaluations + test) * self.evaluate_seconds

    def _result(self, test: Evaluation | None, sha256: str) -> dict[str, Any]:
        session, config, past = self.session, self.session.config, self.past
        best = past.best or past.zero_shot["validation"]
        window = max(1, min(_SPEED_WINDOW, len(past.losses) // 2))
        return {
            "schema": 1,
            "status": "finished",
            "model": session.resolved.name,
            "task": session.data.task.name,
            "method": config.method,
            "scope": config.scope,
            "seed": config.seed,
            "steps": past.step,
            "stopped_by": past.stopped_by,
            "metric": session.metric,
            "zero_shot": {split: asdict(outcome) for split, outcome in past.zero_shot.items()},
            "best": {"step": past.best_step, "validation": asdict(best)},
            "test": asdict(test) if test else None,
            "training_loss": {
                "first": sum(past.losses[:window]) / window,
                "last": sum(past.losses[-window:]) / window,
                "steps_averaged": window,
            },
            "objective": config.objective,
            "tie_share": past.ties / (past.step * config.queries),
            "final_sha256": sha256,
            "train_seconds": past.train_seconds,
            "validation_seconds": past.validation_seconds,
            "steps_per_second": past.step / past.train_seconds if past.train_seconds else None,
            "padding_share": 1.0 - past.tokens / past.padded_tokens,
            "ranks": self.team.size,
            "bytes_sent": self.team.bytes_sent,
        }


def evaluations_since_the_lowest(losses: Sequence[float]) -> int:
    """Number of losses after the last one that was lower than all before it, by 0.1 % at least."""
    lowest, since = math.inf, 0
    for loss in losses:
        since += 1
        if lowest == math.inf or loss < lowest - _LEAST_GAIN * abs(lowest):
            lowest, since = loss, 0
    return since


def _smooth(mean: float, value: float) -> float:
    """Updates an exponential moving average by one value."""
    return _SMOOTHING * mean + (1 - _SMOOTHING) * value
