"""A run made ready: model, data and what trains. Training, evaluation and generation start here."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from . import events
from .batching import EncodedExample, by_length, encode
from .config import RunConfig
from .evaluate import Evaluation, evaluate
from .files import Progress as FileProgress
from .memory.meter import mlx_memory, system_memory
from .models.causal import CausalLM
from .models.loading import LoadedModel, count_parameters, load_model, weights_fingerprint
from .models.scope import Trainable, prepare
from .models.sources import ResolvedModel, resolve
from .scoring import Prefix
from .tasks.base import TaskData
from .tasks.registry import load_task

# `prefix_cache: auto` takes at most this share of the memory that programs could have now.
_CACHE_SHARE = 0.1


@dataclass
class Session:
    """Everything a method or an evaluation needs, loaded."""

    config: RunConfig
    resolved: ResolvedModel
    loaded: LoadedModel
    causal: CausalLM
    trainable: Trainable
    prefix: Prefix
    data: TaskData
    splits: dict[str, list[EncodedExample]]
    weights_sha256: str

    @property
    def metric(self) -> str:
        return self.data.task.metric

    def trained_parameters(self) -> dict[str, mx.array]:
        return {name: self.causal.slots[name].get() for name in self.trainable.names}

    def evaluate(self, split: str, emit: events.Emit) -> Evaluation:
        """Measures the weights as they stand on one split, telling `emit` how far it is."""
        return evaluate(
            self.causal,
            self.splits[split],
            self.metric,
            batch_size=self.config.batch_size,
            prefix=self.prefix,
            on_progress=lambda done, total: emit(
                events.Progress(f"evaluating on {split}", float(done), float(total), "examples")
            ),
        )


def open_model(config: RunConfig, emit: events.Emit) -> tuple[ResolvedModel, LoadedModel]:
    """Brings the model of a configuration into memory; downloads and conversions are reported as they go.

    Raises:
        ModelError: it cannot be had or loaded. DoesNotFit: the disk is full.
    """

    def report(progress: FileProgress) -> None:
        total = None if progress.total_bytes is None else float(progress.total_bytes)
        emit(events.Progress(progress.label, float(progress.done_bytes), total, "bytes"))

    resolved = resolve(config.model, progress=report)
    emit(events.Phase("load", resolved.name))
    return resolved, load_model(resolved, dtype=config.dtype)


def compute_dtype() -> mx.Dtype | None:
    """float32 on the CPU, where half-precision products bypass BLAS; a GPU computes in the model's own dtype."""
    return mx.float32 if mx.default_device() == mx.cpu else None


def open_session(config: RunConfig, emit: events.Emit, *, trains: bool = True) -> Session:
    """Loads data and model of a resolved configuration and makes the parameters of its scope trainable.

    Args:
        trains: False for a base model that is only read: its scope does not matter, and nothing is trainable.

    Raises:
        MlxzoError: data or model cannot be had (exit code 4), or the scope does not suit the model (2).
    """
    # Data first: it is quick, and a bad line is better told before a long download.
    data = load_task(config, progress=lambda text: emit(events.Progress(text, 0.0, None, "")))
    resolved, loaded = open_model(config, emit)
    # Fingerprint and count are of the base weights: adapters come afterwards.
    sha256 = weights_fingerprint(loaded.model)
    parameters = count_parameters(loaded.model)
    trainable = prepare(loaded.model, config) if trains else Trainable(())
    causal = CausalLM(loaded.model, compute_dtype())
    splits = {
        split: [encode(example, loaded.tokenizer, config.max_tokens) for example in getattr(data, split)]
        for split in ("train", "validation", "test")
    }
    session = Session(
        config, resolved, loaded, causal, trainable, Prefix(causal, trainable.frozen_layers), data, splits, sha256
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
        )
    )
    for text in _remarks(session):
        emit(events.Note(text))
    return session


def fill_prefix_cache(session: Session, emit: events.Emit) -> None:
    """Computes the frozen layers' output of every example once, where the configuration and the memory allow it."""
    config, prefix = session.config, session.prefix
    if not prefix.layers or config.prefix_cache == "off":
        return
    examples = [example for split in session.splits.values() for example in split]
    rows = sum(len(example.rows) for example in examples)
    hidden_bytes = 4 * session.causal.hidden_size * sum(len(r.tokens) for e in examples for r in e.rows)
    if config.prefix_cache == "auto":
        # A run that does not come back to its examples would not get back what the cache costs.
        reused = config.steps * config.batch_size > len(session.splits["train"])
        if not reused or hidden_bytes > _CACHE_SHARE * system_memory()[1]:
            return
    emit(events.Phase("prefix", f"{prefix.layers} frozen layers, once an example"))
    for done in prefix.fill(batch for _, batch in by_length(examples, config.batch_size)):
        emit(events.Progress("frozen layers", float(done), float(rows), "sequences"))


def _remarks(session: Session) -> list[str]:
    remarks = []
    truncated = sum(example.truncated for split in session.splits.values() for example in split)
    if truncated:
        remarks.append(
            f"{truncated} prompts are longer than max_tokens ({session.config.max_tokens}) and lose their beginning"
        )
    if session.data.duplicates_across_splits:
        count = session.data.duplicates_across_splits
        remarks.append(f"{count} validation or test examples have a prompt that is also a training prompt")
    if not session.causal.exposes_hidden:
        remarks.append("this model shows no hidden states: full logits are computed, which takes more memory")
    return remarks
