"""Opening of a run: data, then model files, then weights, then the parameters that train.

data = load_data(config, emit)
inputs = fetch(config, data, emit)
base = load_base(inputs)
session = make_session(inputs, base, prepare(base.loaded.model, inputs.config), emit)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from ..core import events
from ..core.config import RunConfig
from ..core.defaults import ALL_EXAMPLES, RSGN_FEWEST_BEHIND, RSGN_TOKENS_BEHIND
from ..core.device import computes_as_cpu
from ..core.errors import ConfigError
from ..core.files import FileProgress
from ..core.meter import mlx_memory, return_freed_memory
from ..core.resolved_config import ResolvedConfig
from ..models.causal import CausalLM
from ..models.folder import context_length
from ..models.loading import LoadedModel, count_parameters, load_model, load_tokenizer, weights_fingerprint
from ..models.resolve import ResolvedModel, resolve
from ..models.trainable import Trainable, prepare
from ..tasks.base import TaskData
from ..tasks.metrics import WRITTEN
from ..tasks.registry import load_task
from .activation_cache import ActivationCache
from .batching import Batch, Shapes, make_batch
from .data_summary import duplicates_text, summarise
from .distributed.communicator import Communicator, members_at_once
from .encoding import EncodedExample, encode_all
from .reward import Judge
from .scoring import Scorer

Splits = dict[str, list[EncodedExample]]
"""The examples of each split, as tokens."""


@dataclass
class Session:
    """A run ready to compute.

    Attributes:
        asked: the configuration as config.yaml holds it.
        config: the same to compute with.
        resolved: the model's files.
        shapes: bounds of the micro-batches; `shrink` makes them smaller.
        weights_sha256: fingerprint of the weights before adapters are added.
        judge: the judge of answers; None without one.
        team: the ranks that share the work.
    """

    asked: RunConfig
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
    config: ResolvedConfig = field(init=False)
    _whole: Batch | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.config = ResolvedConfig.of(self.asked)

    @property
    def metric(self) -> str:
        """`reward` where a judge scores answers, else the task's metric."""
        return self.data.task.metric if self.judge is None else "reward"

    def trained_parameters(self) -> dict[str, mx.array]:
        """The parameters that train, by name."""
        return {name: self.causal.slots[name].get() for name in self.trainable.names}

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        """Examples cut into the micro-batches of this run; all training examples are the same batch each time."""
        train = self.splits["train"]
        if len(examples) != len(train) or any(a is not b for a, b in zip(examples, train, strict=True)):
            return make_batch(examples, self.shapes)
        if self._whole is None:
            self._whole = replace(make_batch(examples, self.shapes), repeats=True)
        return self._whole

    def shrink(self) -> str:
        """Makes the run take less memory from here on.

        Freed memory goes back to the system, and micro-batches become half as large: losses stay the same to the
        rounding of float32. Where every example runs alone already, the activation cache in memory is dropped: losses
        stay bit-identical.

        Returns:
            A description of the change; empty if nothing more can be done.
        """
        self._whole = None
        mx.clear_cache()
        return_freed_memory()
        examples = [example for split in self.splits.values() for example in split]
        now = self.shapes.largest(examples)
        smaller = replace(self.shapes, tokens=now // 2)
        if (then := smaller.largest(examples)) < now:
            self.shapes = self.scorer.frozen.shapes = smaller
            return f"micro-batches have at most {then} tokens instead of {now}; losses stay the same up to rounding"
        if isinstance(self.scorer.cache, ActivationCache):
            self.scorer.cache = None
            mx.clear_cache()
            return "the output of the frozen layers is no longer kept, and computed in every step"
        return ""


def find_model(config: RunConfig, emit: events.Emit) -> ResolvedModel:
    """Brings the model of a configuration onto this machine, and emits the progress of downloads and conversions.

    Raises:
        ModelError: it cannot be had. DoesNotFit: the disk is full.
    """

    begun = False

    def report(progress: FileProgress) -> None:
        nonlocal begun
        if not begun:
            begun = True
            emit(events.Phase("fetch", config.model))
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


def compute_dtype() -> mx.Dtype | None:
    """float32 on the CPU, where half-precision products bypass BLAS; a GPU computes in the model's own dtype."""
    return mx.float32 if computes_as_cpu() else None


def micro_batch_shapes(config: RunConfig) -> Shapes:
    """Bounds of micro-batches that suit the device."""
    return Shapes.suited(computes_as_cpu(), config.micro_batch, members_at_once(config) > 1)


def load_data(config: RunConfig, emit: events.Emit) -> TaskData:
    """Loads the data of a configuration. It comes first: it is quick, and the downloads after it may be long.

    Raises:
        DataError: the data cannot be had. ConfigError: the objective does not suit the task.
    """
    data = load_task(config, progress=lambda text: emit(events.Progress(text, 0.0, None, "")))
    if config.objective in ("accuracy", "soft-accuracy") and data.task.metric != "accuracy":
        raise ConfigError(
            f"objective: {config.objective} needs answers to choose among, and the task {data.task.name} has none",
            "use --objective reward, by the judges of the task"
            if data.task.reward is not None
            else "use --objective loss, or f1 or exact_match where answers are written",
        )
    if config.objective in WRITTEN and not data.task.writes:
        raise ConfigError(
            f"objective: {config.objective} needs answers that the model generates, and the task {data.task.name} "
            "has none",
            "use --objective accuracy",
        )
    return data


@dataclass(frozen=True)
class Inputs:
    """Data and model files of a run; no weights are in memory.

    Attributes:
        config: with `max_tokens` within the model's context.
        model: the model's files.
        splits: the rows of `data` as tokens.
    """

    config: RunConfig
    data: TaskData
    model: ResolvedModel
    tokenizer: Any
    splits: Splits


def fetch(config: RunConfig, data: TaskData, emit: events.Emit) -> Inputs:
    """Brings the model of a configuration onto this machine and tokenizes the data.

    Raises:
        ModelError: the model cannot be had. DoesNotFit: the disk is full. DataError: a row cannot be tokenized.
    """
    model = find_model(config, emit)
    config = within_context(config, model, emit)
    tokenizer = load_tokenizer(model)
    return_freed_memory()
    splits = encode_splits(config, data, tokenizer)
    return Inputs(with_batch_size(config, splits), data, model, tokenizer, splits)


@dataclass(frozen=True)
class Base:
    """A model in memory, with fingerprint and parameter count of its weights before adapters are added."""

    loaded: LoadedModel
    weights_sha256: str
    parameters: int


def load_base(inputs: Inputs) -> Base:
    """Loads the weights.

    Raises:
        ModelError: they cannot be loaded.
    """
    loaded = load_model(inputs.model, dtype=inputs.config.dtype, tokenizer=inputs.tokenizer)
    return Base(loaded, weights_fingerprint(loaded.model), count_parameters(loaded.model))


def make_session(
    inputs: Inputs,
    base: Base,
    trainable: Trainable,
    emit: events.Emit,
    *,
    judge: Judge | None = None,
    team: Communicator | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Session:
    """Makes the session of a loaded model, and emits what it consists of.

    Args:
        trainable: the parameters of the model that train.
        judge: the judge of answers, where the run or its task names one.
        team: the ranks that share the work; None for a run in one process.
        interrupt: called where a forward pass can be given up (see `CausalLM`).

    Raises:
        ModelError: the model lacks a token of the data.
    """
    config, data, splits = inputs.config, inputs.data, inputs.splits
    base.loaded.check_tokens(token for examples in splits.values() for each in examples for token in each.tokens)
    causal = CausalLM(base.loaded.model, compute_dtype(), interrupt)
    shapes = micro_batch_shapes(config)
    session = Session(
        config,
        inputs.model,
        base.loaded,
        causal,
        trainable,
        Scorer(causal, trainable.frozen_layers, shapes=shapes),
        shapes,
        data,
        splits,
        base.weights_sha256,
        judge,
        team or Communicator(),
    )
    emit(
        events.Loaded(
            model=inputs.model.name,
            source=inputs.model.source,
            parameters=base.parameters,
            trainable_parameters=sum(p.size for p in session.trained_parameters().values()),
            trainable_tensors=len(trainable.names),
            weights_sha256=base.weights_sha256,
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


def open_session(config: RunConfig, emit: events.Emit) -> Session:
    """Opens a configuration with the parameters of its scope trainable.

    Raises:
        MlxzoError: data or model cannot be had (exit code 4), or the scope does not suit the model (2).
    """
    inputs = fetch(config, load_data(config, emit), emit)
    base = load_base(inputs)
    return make_session(inputs, base, prepare(base.loaded.model, inputs.config), emit)


def within_context(config: RunConfig, resolved: ResolvedModel, emit: events.Emit) -> RunConfig:
    """The configuration with `max_tokens` within the model's context; emits a note where it was larger."""
    context = context_length(resolved.path)
    if context is None or config.max_tokens <= context:
        return config
    emit(events.Note(f"max_tokens is {context}, the context length of {resolved.name}: longer texts are cut"))
    return replace(config, max_tokens=context)


def with_batch_size(config: RunConfig, splits: Splits) -> RunConfig:
    """The configuration with a batch size, where that depends on the data.

    Behind the last layer a pass over labels of one token each costs next to nothing, so a step takes all examples.
    Other answers need the vocabulary's normaliser at each of their tokens.
    """
    if config.batch_size is not None or ResolvedConfig.of(config).batch_size != ALL_EXAMPLES:
        return config
    # A model that only labels rows has no training examples.
    train = splits["train"]
    scored = sum(example.scored for example in train if not example.shared)
    enough = len(train) if not scored else max(RSGN_FEWEST_BEHIND, RSGN_TOKENS_BEHIND * len(train) // scored)
    return replace(config, batch_size=max(1, min(enough, len(train))))


def encode_splits(config: RunConfig, data: TaskData, tokenizer: Any) -> Splits:
    """Tokenizes the rows of a run.

    Raises:
        DataError: rows cannot be tokenized; all of them are named.
    """
    rows = {"train": data.learned(config.objective), "validation": data.validation, "test": data.test}
    return encode_all(rows, tokenizer, config.max_tokens)


def _remarks(session: Session) -> list[str]:
    remarks = [
        summarise(split, getattr(session.data, split), encoded).text
        for split, encoded in session.splits.items()
        if encoded
    ]
    remarks += (*session.data.remarks, *session.trainable.remarks)
    truncated = sum(example.truncated for split in session.splits.values() for example in split)
    if truncated:
        remarks.append(
            f"{truncated} examples are longer than max_tokens ({session.config.max_tokens}): prompts lose their "
            "beginning, texts without a prompt their end"
        )
    if session.data.duplicates_across_splits:
        remarks.append(duplicates_text(session.data.duplicates_across_splits))
    if not session.causal.exposes_hidden:
        remarks.append("this model exposes no hidden states: full logits are computed, which takes more memory")
    return remarks
