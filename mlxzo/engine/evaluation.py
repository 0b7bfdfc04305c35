"""Evaluation: the answers of a model to examples, and the metrics of these answers.

An answer is the likeliest of an example's candidates, or generated (see `generation`). A metric is a function of
answers and gold answers (see `tasks.metrics`); the loss is that of the candidates.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate, islice
from typing import Any

import numpy as np

from ..core import events
from ..core.errors import Diverged
from ..core.metrics import metric_named, standard_error
from ..tasks.base import Example
from ..tasks.metrics import METRICS, WRITTEN
from ..zo.perturb import Population, View
from .batching import SCORED_AT_ONCE, Batch, Shapes, by_length
from .data_summary import share_candidates
from .distributed.communicator import Communicator, Piece, members_at_once
from .encoding import EncodedExample, encode_prompt
from .generation import Generator
from .objectives import AnswerObjective, by_judge, by_metric
from .prefill import Prefill
from .prefix_sharing import MAX_NEW_TOKENS, Prompt, worth_sharing
from .sampling import Sampling
from .scoring import Scorer, candidate_probabilities, example_losses
from .session import Session

# Examples of a split in `events.Samples`, and the most characters of a prompt, from its end.
_SHOWN, SHOWN_CHARACTERS = 6, 400


@dataclass(frozen=True)
class Evaluation:
    """Outcome of an evaluation: `value` of the task's metric, mean loss (of prompts alone, 1 less the mean reward), and
    duration in seconds.

    Attributes:
        majority: the metric of the most frequent label; None where there are no labels.
        more: further metrics of the same answers.
    """

    metric: str
    value: float
    loss: float
    examples: int
    majority: float | None
    seconds: float
    more: dict[str, float] = field(default_factory=dict)

    def better_than(self, other: Evaluation | None) -> bool:
        """Compares two evaluations by the metric, and by the loss where their shares are equal. One whose loss is not
        finite is never better.

        Shares within one standard error of a binomial share count as equal. On 100 examples that is 4 to 5 points, so
        the higher accuracy would often be luck, while the loss sees small changes of every example. A mean of F1 values
        has at most that error: no distribution on [0, 1] spreads wider than the share with the same mean.
        """
        if not math.isfinite(self.loss):
            return False
        if other is None:
            return True
        metric = metric_named(self.metric)
        error = standard_error(other.value, other.examples) if metric.is_share else 0.0
        if abs(self.value - other.value) > error:
            return metric.merit(self.value) > metric.merit(other.value)
        return metric.is_share and self.loss < other.loss


@dataclass(frozen=True)
class Scored:
    """Scores of examples: float64 [C] of the candidates of each (see `Scorer.scores`), and the losses [N]."""

    scores: list[np.ndarray]
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Mean loss, summed in the order of the examples, so that it does not depend on how they were batched."""
        return float(self.losses.mean())


class Evaluator:
    """Evaluates a session's model under its weights as they stand: scores candidates, generates answers, measures."""

    def __init__(self, session: Session):
        self.session = session
        self._judge = None if session.judge is None else by_judge(session.judge)
        self._supports_population: bool | None = None

    def evaluate(self, split: str, emit: events.Emit) -> Evaluation:
        """Evaluates one split; `emit` takes the progress."""
        session = self.session
        return self.measure(split, getattr(session.data, split), session.splits[split], emit)

    def measure(
        self,
        split: str,
        examples: Sequence[Example],
        encoded: Sequence[EncodedExample],
        emit: events.Emit,
        adjust: Callable[[Scored], Scored] = lambda scored: scored,
    ) -> Evaluation:
        """Evaluates examples, which `encoded` holds as tokens.

        Args:
            split: their split, for progress and samples.
            adjust: maps their scores before the likeliest candidate is taken.

        Raises:
            RewardError: the user's judge fails. Diverged: a loss is not a finite number.
        """
        started, task, judge = time.perf_counter(), self.session.data.task, self._judge
        metric = self.session.metric
        majority = majority_share(examples) if metric in METRICS else None
        values: dict[str, float] = {}
        scored: Scored | None = None
        if judge is not None or task.writes:
            if task.has_answers:
                answers, scored = self.write_and_score(split, examples, encoded, emit)
                scored = _finite(split, adjust(scored))
            else:
                answers = self.write(split, examples, emit)
            emit(events.Samples(split, samples(examples, answers, None)))
        else:
            scored = _finite(split, adjust(self.score(f"evaluating on {split}", encoded, emit)))
            answers = choose(examples, scored.scores)
            if metric in METRICS:
                emit(events.Samples(split, samples(examples, answers, scored.scores)))
        comparable = METRICS if judge is None else WRITTEN
        if names := [name for name in (task.metric, *task.more_metrics) if name in comparable]:
            means = self._on_one_rank(len(names), lambda: [mean_metric(name, answers, examples) for name in names])
            values = dict(zip(names, means.tolist(), strict=True))
        if judge is not None:
            judged = self._on_one_rank(len(examples), lambda: judge(examples, answers))
            values["reward"] = statistics.fmean(judged)
        # Prompts alone have no answer to take the loss of: theirs is what a step minimises.
        loss = 1.0 - values["reward"] if scored is None else scored.loss
        value = values.pop(metric, loss)
        seconds = time.perf_counter() - started
        return Evaluation(metric, value, loss, len(examples), majority, seconds, more=values)

    def score(self, label: str, encoded: Sequence[EncodedExample], emit: events.Emit) -> Scored:
        """Scores the candidates of examples."""
        return score(
            self.session.scorer,
            encoded,
            rows=SCORED_AT_ONCE,
            make=self.session.batch,
            on_progress=_reporter(label, "examples", emit),
            team=self.session.team,
            reading=self._shared_prefix_shapes(encoded),
        )

    def _shared_prefix_shapes(self, encoded: Sequence[EncodedExample]) -> Shapes | None:
        """Bounds within which common prefixes of the rows are read once; None where that does not pay, or the model
        does not support it."""
        session = self.session
        # Keys and values of as many tokens as a forward pass would have take about as much memory as that pass.
        shapes = replace(session.shapes, tokens=session.shapes.largest(encoded), written_share=1, population=1)
        rows = [row for example in encoded for row in example.rows]
        # Frozen layers count as cached even where they are not: the decision must be the same on all ranks.
        frozen = session.scorer.layers / max(1, len(session.causal.layers))
        pays = worth_sharing(rows, shapes, 1.0 - frozen)
        return shapes if pays and Prefill(session.causal).supports_trim else None

    def write(
        self,
        split: str,
        examples: Sequence[Example],
        emit: events.Emit = events.ignore,
        view: View | None = None,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """Generates the answers to examples.

        Args:
            split: their split, for progress.
            view: the weights to use; None for those that stand.
            sampling: how tokens are drawn; None for greedy decoding.
        """
        prompts = [Prompt(tokens) for tokens in self._prompts(examples)]
        return self._generator(view, sampling).write(prompts, _reporter(_writing(split), "answers", emit)).answers

    def write_and_score(
        self, split: str, examples: Sequence[Example], encoded: Sequence[EncodedExample], emit: events.Emit
    ) -> tuple[list[str], Scored]:
        """Generates the greedy answers to examples and scores their candidates.

        The only candidate of an example is scored while its prompt is read, where it directly follows the prompt.

        Args:
            encoded: the examples as tokens.
        """
        generator = self._generator()
        prompts = [
            Prompt(prompt, example.expected_after(prompt) if generator.can_score else ())
            for prompt, example in zip(self._prompts(examples), encoded, strict=True)
        ]
        written = generator.write(prompts, _reporter(_writing(split), "answers", emit))
        losses = self._on_one_rank(len(examples), lambda: written.losses)
        scores = [np.array([-loss]) for loss in losses]
        if others := [number for number, prompt in enumerate(prompts) if not prompt.expected]:
            scored = self.score(f"evaluating on {split}", [encoded[number] for number in others], emit)
            for number, own, loss in zip(others, scored.scores, scored.losses, strict=True):
                scores[number], losses[number] = own, loss
        return written.answers, Scored(scores, losses)

    def of_answers(self) -> AnswerObjective | None:
        """The objective of the run, where it is a function of generated answers."""
        config = self.session.config
        if not config.writes:
            return None
        return AnswerObjective(self._written_in_a_step, self._judge or by_metric(config.objective))

    def _written_in_a_step(self, examples: Sequence[Example], views: Sequence[View]) -> list[list[str]]:
        """Generates the answers that a step judges, under each view; of a population in one batch if it can be so.

        Random draws follow from the seed and the examples alone, so that both sides of a direction use the same.
        """
        config, sampling = self.session.config, None
        if config.temperature:
            prompts = "\0".join(example.prompt for example in examples)
            name = (config.seed, blake2b(prompts.encode(), digest_size=16).hexdigest())
            sampling = Sampling(config.temperature, config.top_p, name)
        if len(views) == 1 or not self._by_row(views):
            return [self.write("train", examples, view=view, sampling=sampling) for view in views]
        population = self._population(views)
        answers = self.write("train", examples, view=population, sampling=sampling)
        count = len(examples)
        return [answers[first : first + count] for first in range(0, len(answers), count)]

    def _population(self, views: Sequence[View]) -> Population:
        session = self.session
        return Population(views, session.trainable.names, session.causal.compute_dtype)

    def _by_row(self, views: Sequence[View]) -> bool:
        """True if the model computes each row of a batch with the weights of its own member, tried once."""
        if members_at_once(self.session.config) == 1:
            return False
        if self._supports_population is None:
            self._supports_population = self.session.causal.supports(self._population(views[:2]), views[:2])
        return self._supports_population

    def _generator(self, view: View | None = None, sampling: Sampling | None = None) -> Generator:
        session = self.session
        return Generator(
            session.causal,
            session.loaded.tokenizer,
            session.shapes,
            view=view,
            sampling=sampling,
            frozen_layers=session.trainable.frozen_layers,
        )

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """The prompt tokens of each example, cut so that an answer fits after them."""
        room = max(1, self.session.config.max_tokens - MAX_NEW_TOKENS)
        loaded = self.session.loaded
        prompts = [tuple(encode_prompt(example, loaded.tokenizer, room)) for example in examples]
        loaded.check_tokens(token for prompt in prompts for token in prompt)
        return prompts

    def _on_one_rank(self, count: int, compute: Callable[[], Sequence[float] | np.ndarray]) -> np.ndarray:
        """Values computed by one rank and broadcast to all, float64 [count].

        A judge may not be deterministic, and machines of different kinds may generate different answers.
        """
        pieces = [Piece(1.0, (count,))]
        (found,) = self.session.team.scatter_gather(pieces, lambda _: [np.array(compute(), np.float64)])
        return found


def _finite(split: str, scored: Scored) -> Scored:
    """The scores, if all losses are finite; raises Diverged otherwise, where the likeliest candidate means nothing."""
    if broken := int((~np.isfinite(scored.losses)).sum()):
        raise Diverged.not_finite(f"the loss of {broken} of {len(scored.losses)} {split} examples")
    return scored


def _writing(split: str) -> str:
    return f"generating answers on {split}"


def _reporter(label: str, unit: str, emit: events.Emit) -> Callable[[int, int], None]:
    return lambda done, total: emit(events.Progress(label, float(done), float(total), unit))


def samples(
    examples: Sequence[Example], answers: Sequence[str], scores: Sequence[np.ndarray] | None
) -> list[dict[str, Any]]:
    """The answers to the first few examples, in the form of `events.Samples`.

    Args:
        scores: float64 [C] of each example's candidates (mean log-likelihood per token), where the answers were chosen
            among them.
    """
    return [
        {
            "prompt": example.prompt[-SHOWN_CHARACTERS:],
            "answer": answer,
            "right": next(iter(example.gold), None),
            "share": None if scores is None else float(candidate_probabilities(scores[number]).max()),
        }
        for number, (example, answer) in enumerate(zip(examples[:_SHOWN], answers, strict=False))
    ]


def score(
    scorer: Scorer,
    examples: Sequence[EncodedExample],
    *,
    rows: int,
    make: Callable[[Sequence[EncodedExample]], Batch],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    team: Communicator | None = None,
    reading: Shapes | None = None,
) -> Scored:
    """Scores the candidates of `examples` under the weights as they stand.

    Args:
        rows: of the examples that each rank scores between two calls of `on_progress`.
        make: cuts them into micro-batches.
        on_progress: takes the numbers of examples scored and in all.
        team: the ranks that share the forward passes; None for a run in one process.
        reading: bounds within which common prefixes of a batch are read once (see `Scorer.scores_by_reading`); None
            reads each row whole.
    """
    team = team or Communicator()
    scored, losses, done = [np.empty(0)] * len(examples), np.zeros(len(examples)), 0
    batches = by_length(examples, rows, make)
    while some := list(islice(batches, team.size)):
        parts = [part for _, batch in some for part in batch.parts]
        places = [[indices[i] for i in place] for indices, batch in some for place in batch.places]
        grids = _grids(scorer, [batch for _, batch in some], team, reading)
        for part, numbers, grid in zip(parts, places, grids, strict=True):
            losses[numbers] = example_losses(grid, part.target)
            for number, row in zip(numbers, grid, strict=True):
                # Beyond an example's own candidates the grid is padding.
                scored[number] = row[: examples[number].candidates]
        done += sum(len(indices) for indices, _ in some)
        on_progress(done, len(examples))
    return Scored(scored, losses)


def _grids(
    scorer: Scorer, batches: Sequence[Batch], team: Communicator, reading: Shapes | None
) -> Sequence[np.ndarray]:
    """Scores of each micro-batch of some batches, one after the other: float64 [B, C]."""
    view = scorer.causal.view()
    parts = tuple(part for batch in batches for part in batch.parts)
    if reading is None:
        whole = Batch(parts, tuple(places for batch in batches for places in batch.places))
        pieces = [Piece(float(part.tokens.size), part.candidate.shape) for part in parts]
        return team.scatter_gather(pieces, lambda numbers: scorer.scores(whole.picked(numbers), view))

    def read(numbers: Sequence[int]) -> list[np.ndarray]:
        grids = (scorer.scores_by_reading(batches[number], view, reading) for number in numbers)
        return [np.concatenate(of_batch, axis=None) for of_batch in grids]

    # A batch is one rank's, so that what is read together does not depend on how many ranks there are.
    sizes = [sum(part.candidate.size for part in batch.parts) for batch in batches]
    pieces = [Piece(float(batch.token_count), (size,)) for batch, size in zip(batches, sizes, strict=True)]
    *ends, _ = accumulate(part.candidate.size for part in parts)
    flat = np.split(np.concatenate(team.scatter_gather(pieces, read)), ends)
    return [grid.reshape(part.candidate.shape) for grid, part in zip(flat, parts, strict=True)]


def choose(examples: Sequence[Example], scores: Sequence[np.ndarray]) -> list[str]:
    """The likeliest candidate of each example, as text."""
    return [example.candidates[int(row.argmax())] for example, row in zip(examples, scores, strict=True)]


def mean_metric(metric: str, answers: Sequence[str], examples: Sequence[Example]) -> float:
    """Mean of a metric (see `tasks.metrics.METRICS`) over the answers to some examples."""
    measure = METRICS[metric]
    return sum(measure(answer, example.gold) for answer, example in zip(answers, examples, strict=True)) / len(examples)


def majority_share(examples: Sequence[Example]) -> float | None:
    """Share of the most frequent answer, the accuracy of a constant guess; None where examples do not share their
    candidates, and for completions."""
    if not share_candidates(examples):
        return None
    return Counter(example.target for example in examples).most_common(1)[0][1] / len(examples)
