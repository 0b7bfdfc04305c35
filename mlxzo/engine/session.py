"""A run made ready: model, data and what trains. Training, evaluation and generation start here."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..core import events
from ..core.config import RunConfig
from ..core.errors import ConfigError
from ..core.files import FileProgress, need_free_space
from ..core.formatting import format_bytes
from ..core.meter import mlx_memory, return_freed_memory, system_memory
from ..models.causal import CausalLM
from ..models.folder import context_length
from ..models.loading import LoadedModel, count_parameters, load_model, load_tokenizer, weights_fingerprint
from ..models.resolve import ResolvedModel, resolve
from ..models.trainable import Trainable, prepare
from ..tasks.base import Example, TaskData
from ..tasks.metrics import METRICS, WRITTEN
from ..tasks.registry import load_task
from ..zo.perturb import View
from .activation_cache import ActivationCache, DiskActivationCache
from .batching import SCORED_AT_ONCE, Batch, Shapes, make_batch
from .data_summary import duplicates_text, summarise
from .distributed.communicator import Communicator, Piece
from .encoding import EncodedExample, encode, encode_prompt
from .evaluation import Evaluation, Scored, choose, majority_share, mean_metric, score
from .generation import Generator
from .objectives import OfAnswers, judged_by, shortfall
from .prefill import Prefill
from .prefix_sharing import MAX_NEW_TOKENS, Prompt, worth_sharing
from .reward import Answer, Judge
from .sampling import Sampling
from .scoring import Scorer

# `activation_cache: auto` takes at most this share of the memory that programs could have now, or of the free disk.
_CACHE_SHARE = 0.1
# Examples of a split whose answers are told, and the longest end of their prompts.
_SHOWN, _SHOWN_CHARACTERS = 6, 400


Splits = dict[str, list[EncodedExample]]
"""The examples of each split, as tokens."""


@dataclass
class Session:
    """Everything a method or an evaluation needs, loaded."""

    config: RunConfig
    resolved: ResolvedModel
    loaded: LoadedModel
    causal: CausalLM
    trainable: Trainable
    scorer: Scorer
    shapes: Shapes
    data: TaskData
    splits: Splits
    weights_sha256: str
    judge: Judge | None = None
    team: Communicator = field(default_factory=Communicator)

    @property
    def metric(self) -> str:
        """`reward` where there is a judge of the user's, else the task's."""
        return self.data.task.metric if self.judge is None else "reward"

    def trained_parameters(self) -> dict[str, mx.array]:
        return {name: self.causal.slots[name].get() for name in self.trainable.names}

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        """Examples cut into the micro-batches of this run."""
        return make_batch(examples, self.shapes)

    def shrink(self) -> str:
        """Makes the run take less memory from here on, and says what was done.

        Freed memory goes back to the system, and micro-batches become half as large: losses stay the same to the
        rounding of float32. Where every example runs alone already, what the frozen layers give is no longer kept in
        memory: losses stay the same to the bit.

        Returns:
            What was done, in words; empty if there is nothing more to do.
        """
        mx.clear_cache()
        return_freed_memory()
        examples = [example for split in self.splits.values() for example in split]
        now = self.shapes.largest(examples)
        smaller = replace(self.shapes, tokens=now // 2)
        if (then := smaller.largest(examples)) < now:
            self.shapes = smaller
            return f"micro-batches have at most {then} tokens instead of {now}; losses stay the same to rounding"
        if isinstance(self.scorer.cache, ActivationCache):
            self.scorer.cache = None
            mx.clear_cache()
            return "the frozen layers' output is no longer kept, and computed for every step"
        return ""

    def evaluate(self, split: str, emit: events.Emit) -> Evaluation:
        """Measures the weights as they stand on one split, telling `emit` how far it is."""
        return self.measure(split, getattr(self.data, split), self.splits[split], emit)

    def measure(
        self,
        split: str,
        examples: Sequence[Example],
        encoded: Sequence[EncodedExample],
        emit: events.Emit,
        adjust: Callable[[Scored], Scored] = lambda scored: scored,
    ) -> Evaluation:
        """Measures the weights as they stand on examples, which `encoded` holds as tokens.

        Args:
            split: that they are of.
            adjust: what becomes of their scores before the likeliest candidate is taken.
        """
        started, task = time.perf_counter(), self.data.task
        majority = majority_share(examples) if self.metric in METRICS else None
        values: dict[str, float] = {}
        if self.judge is not None or task.writes:
            answers, scored = self.write_and_score(split, examples, encoded, emit)
            scored = adjust(scored)
            emit(events.Samples(split, samples(examples, answers, None)))
        else:
            scored = adjust(self.score(f"evaluating on {split}", encoded, emit))
            answers = choose(examples, scored.scores)
            if self.metric in METRICS:
                emit(events.Samples(split, samples(examples, answers, scored.scores)))
        if self.judge is not None:
            values = {"reward": statistics.fmean(self._of_one(len(examples), lambda: self.judged(examples, answers)))}
        elif self.metric in METRICS:
            names = (self.metric, *task.more_metrics)
            means = self._of_one(len(names), lambda: [mean_metric(name, answers, examples) for name in names])
            values = dict(zip(names, means.tolist(), strict=True))
        value = values.pop(self.metric, scored.loss)
        seconds = time.perf_counter() - started
        return Evaluation(self.metric, value, scored.loss, len(examples), majority, seconds, more=values)

    def score(self, label: str, encoded: Sequence[EncodedExample], emit: events.Emit) -> Scored:
        """Scores of the candidates of examples, under the weights as they stand."""
        return score(
            self.scorer,
            encoded,
            rows=SCORED_AT_ONCE,
            make=self.batch,
            on_progress=_reporter(label, "examples", emit),
            team=self.team,
            reading=self._reading(encoded),
        )

    def _reading(self, encoded: Sequence[EncodedExample]) -> Shapes | None:
        """Bounds within which an evaluation reads what its rows begin with in common once; None where that does not
        pay, or the model cannot."""
        # Keys and values of as many tokens as a forward pass would have take about as much memory as that pass.
        shapes = replace(self.shapes, tokens=self.shapes.largest(encoded), written_share=1)
        rows = [row for example in encoded for row in example.rows]
        # Frozen layers are taken as remembered, wherever they are not: all ranks must come to the same.
        frozen = self.scorer.layers / max(1, len(self.causal.layers))
        pays = worth_sharing(rows, shapes, 1.0 - frozen)
        return shapes if pays and Prefill(self.causal).supports_trim else None

    def write(
        self,
        split: str,
        examples: Sequence[Example],
        emit: events.Emit | None = None,
        view: View | None = None,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """The answers that the model writes to examples, by the weights as they stand or as `view` has them.

        Args:
            emit: told how far it is.
            sampling: how tokens are drawn; None takes the likeliest ones.
        """
        prompts = [Prompt(tokens) for tokens in self._prompts(examples)]
        report = _reporter(_writing(split), "answers", emit or events.ignore)
        return self._writer(view, sampling).write(prompts, report).answers

    def write_and_score(
        self, split: str, examples: Sequence[Example], encoded: Sequence[EncodedExample], emit: events.Emit
    ) -> tuple[list[str], Scored]:
        """The greedy answers to examples, and the scores of their candidates, under the weights as they stand.

        The only candidate of an example is scored by the reading of its prompt, where it follows just that.

        Args:
            encoded: the examples as tokens.
        """
        writer = self._writer()
        prompts = [
            Prompt(prompt, example.expected_after(prompt) if writer.can_score else ())
            for prompt, example in zip(self._prompts(examples), encoded, strict=True)
        ]
        written = writer.write(prompts, _reporter(_writing(split), "answers", emit))
        losses = self._of_one(len(examples), lambda: written.losses)
        scores = [np.array([-loss]) for loss in losses]
        if others := [number for number, prompt in enumerate(prompts) if not prompt.expected]:
            scored = self.score(f"evaluating on {split}", [encoded[number] for number in others], emit)
            for number, own, loss in zip(others, scored.scores, scored.losses, strict=True):
                scores[number], losses[number] = own, loss
        return written.answers, Scored(scores, losses)

    def _writer(self, view: View | None = None, sampling: Sampling | None = None) -> Generator:
        return Generator(self.causal, self.loaded.tokenizer, self.shapes, view=view, sampling=sampling)

    def _written_in_a_step(self, examples: Sequence[Example], view: View) -> list[str]:
        """The answers that a step judges. What is drawn follows from the seed and the examples alone, so both sides of
        a direction have the same luck, and another batch has other luck."""
        config, sampling = self.config, None
        if config.temperature:
            prompts = "\0".join(example.prompt for example in examples)
            name = (config.seed, blake2b(prompts.encode(), digest_size=16).hexdigest())
            sampling = Sampling(config.temperature, config.top_p, name)
        return self.write("train", examples, view=view, sampling=sampling)

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """What is read of each example before its answer is written."""
        room = max(1, self.config.max_tokens - MAX_NEW_TOKENS)
        return [tuple(encode_prompt(example, self.loaded.tokenizer, room)) for example in examples]

    def _of_one(self, count: int, compute: Callable[[], Sequence[float]]) -> np.ndarray:
        """Numbers that one rank computes for all, float64 [count]: a judge may change its mind, and machines of
        different kinds may write different answers, of which all must think alike."""
        (found,) = self.team.scatter_gather([Piece(1.0, (count,))], lambda _: [np.array(compute(), np.float64)])
        return found

    def judged(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        """What the user's judge says of answers.

        Raises:
            RewardError: it fails.
        """
        return self.judge.scores([Answer(e.prompt, a, e.gold) for e, a in zip(examples, answers, strict=True)])

    def of_answers(self) -> OfAnswers | None:
        """What the run minimises, where that is of the answers that the model writes."""
        if not self.config.writes:
            return None
        judgement = self.judged if self.judge is not None else judged_by(self.config.objective)
        return shortfall(self._written_in_a_step, judgement)


def _writing(split: str) -> str:
    return f"writing answers on {split}"


def _reporter(label: str, unit: str, emit: events.Emit) -> Callable[[int, int], None]:
    return lambda done, total: emit(events.Progress(label, float(done), float(total), unit))


def samples(
    examples: Sequence[Example], answers: Sequence[str], scores: Sequence[np.ndarray] | None
) -> list[dict[str, Any]]:
    """What a model answers to the first few examples, as `events.Samples` tells it.

    Args:
        scores: float64 [C] of each example's candidates (mean log-likelihood a token), where the answers were chosen
            among them.
    """
    return [
        {
            "prompt": example.prompt[-_SHOWN_CHARACTERS:],
            "answer": answer,
            "right": next(iter(example.gold), None),
            "share": None if scores is None else _share_of_best(scores[number]),
        }
        for number, (example, answer) in enumerate(zip(examples[:_SHOWN], answers, strict=False))
    ]


def _share_of_best(scores: np.ndarray) -> float:
    return float(1.0 / np.exp(scores - scores.max()).sum())


def find_model(config: RunConfig, emit: events.Emit) -> ResolvedModel:
    """Brings the model of a configuration onto this machine; downloads and conversions are reported as they go.

    Raises:
        ModelError: it cannot be had. DoesNotFit: the disk is full.
    """

    def report(progress: FileProgress) -> None:
        total = None if progress.total_bytes is None else float(progress.total_bytes)
        emit(events.Progress(progress.label, float(progress.done_bytes), total, "bytes"))

    resolved = resolve(config.model, progress=report)
    emit(events.Phase("load", resolved.name))
    return resolved


def open_model(config: RunConfig, emit: events.Emit) -> tuple[ResolvedModel, LoadedModel]:
    """Brings the model of a configuration into memory.

    Raises:
        ModelError: it cannot be had or loaded. DoesNotFit: the disk is full.
    """
    resolved = find_model(config, emit)
    return resolved, load_model(resolved, dtype=config.dtype)


def on_cpu() -> bool:
    return mx.default_device() == mx.cpu


def compute_dtype() -> mx.Dtype | None:
    """float32 on the CPU, where half-precision products bypass BLAS; a GPU computes in the model's own dtype."""
    return mx.float32 if on_cpu() else None


def micro_batch_shapes(config: RunConfig) -> Shapes:
    """Micro-batches as suit the device."""
    return Shapes.suited(on_cpu(), config.micro_batch)


def open_session(
    config: RunConfig,
    emit: events.Emit,
    *,
    tune: Callable[[LoadedModel, RunConfig], Trainable] = lambda loaded, config: prepare(loaded.model, config),
    fit: Callable[[RunConfig, ResolvedModel, Splits], RunConfig] = lambda config, resolved, splits: config,
    interrupt: Callable[[], None] = lambda: None,
) -> Session:
    """Loads data and model of a resolved configuration and makes the parameters of its scope trainable.

    Args:
        tune: does something else to the model that was loaded; returns what of it is trainable.
        fit: settles what the memory cap decides, before any weights are loaded.
        interrupt: called where a pass can be given up (see `CausalLM`).

    Raises:
        MlxzoError: data or model cannot be had (exit code 4), the scope does not suit the model (2), or the run does
            not fit (3).
    """
    # Data first: it is quick, and a bad line is better told before a long download.
    data = load_task(config, progress=lambda text: emit(events.Progress(text, 0.0, None, "")))
    if config.objective in ("accuracy", "soft-accuracy") and data.task.metric != "accuracy":
        raise ConfigError(
            f"objective: {config.objective} needs answers to choose among, and the task {data.task.name} has none",
            "use --objective loss, or f1 or exact_match where answers are written",
        )
    if config.objective in WRITTEN and not data.task.writes:
        raise ConfigError(
            f"objective: {config.objective} is of answers that the model writes, and in the task {data.task.name} it "
            "writes none",
            "use --objective accuracy",
        )
    resolved = find_model(config, emit)
    config = within_context(config, resolved, emit)
    tokenizer = load_tokenizer(resolved)
    return_freed_memory()
    splits = encode_splits(config, data, tokenizer)
    config = fit(config, resolved, splits)
    loaded = load_model(resolved, dtype=config.dtype, tokenizer=tokenizer)
    # Fingerprint and count are of the base weights: adapters come afterwards.
    sha256 = weights_fingerprint(loaded.model)
    parameters = count_parameters(loaded.model)
    trainable = tune(loaded, config)
    causal = CausalLM(loaded.model, compute_dtype(), interrupt)
    scorer = Scorer(causal, trainable.frozen_layers)
    session = Session(
        config, resolved, loaded, causal, trainable, scorer, micro_batch_shapes(config), data, splits, sha256
    )
    emit(
        events.Loaded(
            model=resolved.name,
            source=resolved.source,
            parameters=parameters,
            trainable_parameters=sum(p.size for p in session.trained_parameters().values()),
            trainable_tensors=len(trainable.names),
            weights_sha256=sha256,
            task=data.task.name,
            train_examples=len(splits["train"]),
            validation_examples=len(splits["validation"]),
            test_examples=len(splits["test"]),
            active_bytes=mlx_memory().active_bytes,
            objective=config.objective,
        )
    )
    for text in _remarks(session):
        emit(events.Note(text))
    return session


def within_context(config: RunConfig, resolved: ResolvedModel, emit: events.Emit) -> RunConfig:
    """The configuration with sequences no longer than the model was made for, which is told where they could be."""
    context = context_length(resolved.path)
    if context is None or config.max_tokens <= context:
        return config
    emit(events.Note(f"max_tokens is {context}, the context that {resolved.name} was made for: longer texts are cut"))
    return replace(config, max_tokens=context)


def encode_splits(config: RunConfig, data: TaskData, tokenizer: Any) -> Splits:
    """The rows of a run as tokens.

    Raises:
        DataError: one of them cannot be.
    """
    rows = {"train": data.learned(config.objective), "validation": data.validation, "test": data.test}
    return {
        split: [encode(example, tokenizer, config.max_tokens) for example in examples]
        for split, examples in rows.items()
    }


def open_activation_cache(session: Session, folder: Path, emit: events.Emit) -> None:
    """Gives the frozen layers' output a place to be kept, where the configuration asks for one or there is room.

    Args:
        folder: where a cache on disk goes.

    Raises:
        DoesNotFit: a cache on disk was asked for, and the disk is full.
    """
    scorer = session.scorer
    rows = {
        (row, session.shapes.padded(example))
        for split in session.splits.values()
        for example in split
        for row in example.rows
    }
    size = 4 * session.causal.hidden_size * sum(scorer.kept_positions(row) for row, _ in rows)
    kind = _activation_cache_kind(session, folder, size)
    if kind == "off":
        return
    if kind == "disk":
        need_free_space(folder, size, "the frozen layers' output")
    scorer.cache = DiskActivationCache(folder) if kind == "disk" else ActivationCache()
    where = "on disk" if kind == "disk" else "in memory"
    emit(
        events.Note(
            f"what the {scorer.layers} frozen layers give is computed once an example and kept {where}, up to "
            f"{format_bytes(size)}: the first pass over the data is slower than the others"
        )
    )


def _activation_cache_kind(session: Session, folder: Path, size: int) -> str:
    """Where a cache of `size` bytes goes: `ram`, `disk` or `off`."""
    config = session.config
    if not session.scorer.layers or config.activation_cache != "auto":
        return config.activation_cache if session.scorer.layers else "off"
    # A run that does not come back to its examples would not get back what the cache costs.
    if config.steps * config.batch_size <= len(session.splits["train"]):
        return "off"
    if size <= _CACHE_SHARE * system_memory()[1]:
        return "ram"
    return "disk" if size <= _CACHE_SHARE * shutil.disk_usage(folder).free else "off"


def _remarks(session: Session) -> list[str]:
    remarks = [
        summarise(split, getattr(session.data, split), encoded).text
        for split, encoded in session.splits.items()
        if encoded
    ]
    truncated = sum(example.truncated for split in session.splits.values() for example in split)
    if truncated:
        remarks.append(
            f"{truncated} examples are longer than max_tokens ({session.config.max_tokens}): prompts lose their "
            "beginning, texts without a prompt their end"
        )
    if session.data.duplicates_across_splits:
        remarks.append(duplicates_text(session.data.duplicates_across_splits))
    if not session.causal.exposes_hidden:
        remarks.append("this model shows no hidden states: full logits are computed, which takes more memory")
    return remarks
