"""What takes turns in bench/engine.py and runs in MLX: forward passes, MeZO steps and their parts, a textbook MeZO step
and backpropagation, ours and that of mlx-lm's trainer, all on one set of weights.

A turn is a function of the round's number; it does its work to the end and returns the loss it saw, if it saw one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from mlxzo.core.mlx_startup import prepare_mlx

prepare_mlx()

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np

from mlxzo.core.config import RunConfig
from mlxzo.engine.activation_cache import ActivationCache
from mlxzo.engine.batching import Batch, MicroBatch, Shapes, make_batch
from mlxzo.engine.encoding import EncodedExample, Row
from mlxzo.engine.methods.backprop import Backprop
from mlxzo.engine.methods.mezo import MeZO
from mlxzo.engine.methods.rsgn import RSGN
from mlxzo.engine.scoring import Scorer, by_example, example_losses
from mlxzo.engine.session import compute_dtype, micro_batch_shapes
from mlxzo.models.causal import CausalLM
from mlxzo.models.loading import LoadedModel
from mlxzo.models.slots import Slot, slot_of
from mlxzo.models.trainable import prepare
from mlxzo.zo.perturb import Direction

Turn = Callable[[int], float | None]

# So short a step that all rounds see the same weights: what is timed is the step, not what it learns.
LEARNING_RATE = 1e-9


# Directions of an RSGN step here: a peak is that of any number, and few take less time.
RSGN_QUERIES = 4


@dataclass(frozen=True)
class Shape:
    """A synthetic batch of `batch_size` sequences of exactly `length` tokens, so that no padding plays a role.

    With one answer token there are two candidates to choose from, as a label has, and the head is read at their rows
    only; with more, the answer is a completion and the whole head is read.
    """

    length: int
    batch_size: int
    answer_tokens: int = 1

    @property
    def tokens(self) -> int:
        return self.length * self.batch_size

    def __str__(self) -> str:
        answer = "" if self.answer_tokens == 1 else f", {self.answer_tokens} answer tokens"
        return f"{self.batch_size}x{self.length}{answer}"


def ordinary_tokens(loaded: LoadedModel, vocabulary: int) -> np.ndarray:
    """The token ids that stand for text."""
    special = {*loaded.tokenizer.all_special_ids, *getattr(loaded.tokenizer, "added_tokens_decoder", {})}
    return np.setdiff1d(np.arange(vocabulary), sorted(special))


def synthetic_examples(shape: Shape, ids: np.ndarray, seed: int = 0) -> list[EncodedExample]:
    """Examples of random tokens out of `ids`."""
    random = np.random.default_rng([seed, shape.length, shape.batch_size, shape.answer_tokens])
    examples = []
    for number in range(shape.batch_size):
        first_answer = shape.length + 1 - shape.answer_tokens
        drawn = random.choice(ids, shape.length).tolist()
        if shape.answer_tokens == 1:
            targets = tuple((token,) for token in random.choice(ids, 2, replace=False).tolist())
            target = number % 2
        else:
            targets = ((*drawn[first_answer:], int(random.choice(ids))),)
            target = 0
        row = Row(tuple(drawn), first_answer - 1)
        starts = ((0, row.first_position),) * len(targets)
        examples.append(EncodedExample((row,), starts, targets, target, truncated=False))
    return examples


def whole_batch(examples: Sequence[EncodedExample]) -> MicroBatch:
    """All examples in one forward pass, without padding: what the other contestants are given."""
    (part,) = make_batch(examples, Shapes(multiple=1, tokens=2**31)).parts
    return part


class ScopedModel:
    """A model made trainable in one scope of mlxzo.

    Adapters that the scope adds are put in for a turn and taken out again, so that scopes can share the weights.
    """

    def __init__(self, loaded: LoadedModel, config: RunConfig):
        before = dict(loaded.model.named_modules())
        self.model, self.config = loaded.model, config
        self.trainable = prepare(loaded.model, config)
        self.scorer = Scorer(CausalLM(loaded.model, compute_dtype()), self.trainable.frozen_layers)
        self.method = MeZO(self.scorer, self.trainable, config)
        own = dataclasses.replace(config, estimator="rsgn", queries=RSGN_QUERIES, lr=None, update=None)
        self.rsgn = RSGN(self.scorer, self.trainable, own)
        self._added: list[tuple[Slot, nn.Module, nn.Module]] = []
        for path, module in before.items():
            if path and (slot := slot_of(loaded.model, path)).get() is not module:
                self._added.append((slot, module, slot.get()))
        self._put(added=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        self._put(added=True)
        try:
            yield
        finally:
            self._put(added=False)

    def turns(self, examples: Sequence[EncodedExample]) -> dict[str, Turn]:
        """`step` of MeZO; its parts `noise` (as both perturbed passes make it) and `update`; `forward`: one pass over
        the stored weights; and `rsgn`, a step along a few directions. Where layers are frozen, their output is computed
        here and kept, as a run does for its data."""
        batch = make_batch(examples, micro_batch_shapes(self.config))
        with self.installed():
            if self.scorer.layers:
                self.scorer.cache = ActivationCache()
                self.scorer.prefix(batch)
            requests = self._noise_requests(batch)
        parts = {
            "step": lambda step: self.method.step(step, batch).loss,
            "forward": lambda step: forward(self.scorer, batch),
            "noise": partial(self._noise, requests),
            "update": self._update,
            "rsgn": partial(self._rsgn_step, batch),
        }
        return {name: self._with_adapters(turn) for name, turn in parts.items()}

    def _rsgn_step(self, batch: Batch, step: int) -> float:
        """A step that is taken back, up to rounding: its moves are long, and other turns read the same weights."""
        loss = self.rsgn.step(step, batch).loss
        if self.rsgn._last is not None:
            back, _ = self.rsgn._last
            self.rsgn.apply_updates(back.terms, back.step)
        return loss

    def _with_adapters(self, turn: Turn) -> Turn:
        def run(step: int) -> float | None:
            with self.installed():
                return turn(step)

        return run

    def _put(self, added: bool) -> None:
        for slot, plain, adapted in self._added:
            slot.set(adapted if added else plain)

    def _direction(self, step: int) -> Direction:
        return Direction(self.config.seed, step, 0, self.config.directions, self.method.scales)

    def _noise_requests(self, batch: Batch) -> list[tuple]:
        """Everything that the two perturbed passes of a step ask of a direction."""
        direction = self._direction(0)
        recorder = _Recorder(direction.seed, 0, 0, direction.kind, direction.scales)
        self.method.losses(batch, [(recorder, self.config.eps), (recorder, -self.config.eps)])
        return recorder.requests

    def _noise(self, requests: list[tuple], step: int) -> None:
        direction = self._direction(step)
        for request in requests:
            mx.eval(direction.scaled(*request))

    def _update(self, step: int) -> None:
        # Far too short to move a weight.
        self.method.apply_updates([(self._direction(step), 1e-20)], step)


@dataclass(frozen=True)
class _Recorder(Direction):
    """A direction that notes what it is asked for."""

    requests: list[tuple] = field(default_factory=list)

    def scaled(self, *request, **named) -> mx.array:
        self.requests.append((*request, *named.values()))
        return super().scaled(*request, **named)


def forward(scorer: Scorer, batch: Batch) -> float:
    """A forward pass over the stored weights; returns the mean loss."""
    return float(by_example(batch, scorer.scores(batch, scorer.causal.view())).mean())


def textbook_step(causal: CausalLM, part: MicroBatch, eps: float, seed: int) -> float:
    """One step of MeZO's Algorithm 1 (arXiv 2305.17333) over all weights, as its reference implementation does it.

    Gaussian directions are made anew from a seed, the weights perturbed in place (+eps, -2 eps, +eps back), a fourth
    pass updates them, and logits and log-likelihoods are computed for every position. Returns the mean loss of the
    two sides.
    """

    def add_noise(scale: float) -> None:
        keys = mx.random.split(mx.random.key(seed), len(causal.slots))
        for slot, key in zip(causal.slots.values(), keys, strict=True):
            weight = slot.get()
            slot.set(weight + scale * mx.random.normal(weight.shape, weight.dtype, key=key))
            del weight
            mx.eval(slot.get())

    def loss() -> float:
        logits = causal.model(mx.array(part.tokens)).astype(mx.float32)
        logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        rows = logp.reshape(-1, logp.shape[-1])[mx.array(part.positions)]
        scores = rows[mx.array(part.entry_position), mx.array(part.entry_target)].mean(-1)[mx.array(part.candidate)]
        return float(example_losses(np.array(scores, np.float64), part.target).mean())

    add_noise(eps)
    plus = loss()
    add_noise(-2 * eps)
    minus = loss()
    add_noise(eps)
    add_noise(-LEARNING_RATE * (plus - minus) / (2 * eps))
    return (plus + minus) / 2


class Backpropagation:
    """mlxzo's own backpropagation on a scope: Adam steps, the whole batch as one micro-batch."""

    def __init__(self, scoped: ScopedModel, checkpointing: bool):
        self.scoped = scoped
        settings = {"method": "bp", "optimizer": "adam", "checkpointing": "on" if checkpointing else "off"}
        self.method = Backprop(scoped.scorer, scoped.trainable, dataclasses.replace(scoped.config, **settings))

    def turn(self, examples: Sequence[EncodedExample]) -> Turn:
        batch = make_batch(examples, Shapes(multiple=1, tokens=2**31))

        def run(step: int) -> float:
            with self.scoped.installed():
                return self.method.step(step, batch).loss

        return run


class MlxLmTrainer:
    """Adam steps on the adapters of a LoRA scope, with the loss and the compiled step of mlx-lm's trainer."""

    def __init__(self, scoped: ScopedModel, checkpointing: bool):
        from mlx_lm.tuner.trainer import default_loss

        self.scoped, self.checkpointing = scoped, checkpointing
        model = scoped.model
        self.optimizer = optimizers.Adam(learning_rate=LEARNING_RATE)
        with scoped.installed():
            model.freeze()
            for _, module in model.named_modules():
                if "lora_a" in module:
                    module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
            self.optimizer.init(model.trainable_parameters())
        self.state = [model.state, self.optimizer.state, mx.random.state]
        loss_and_gradients = nn.value_and_grad(model, default_loss)

        @partial(mx.compile, inputs=self.state, outputs=self.state)
        def step(tokens: mx.array, lengths: mx.array) -> mx.array:
            (loss, _), gradients = loss_and_gradients(model, tokens, lengths)
            self.optimizer.update(model, gradients)
            return loss

        self._step = step

    def turn(self, examples: Sequence[EncodedExample]) -> Turn:
        """A step on the prompts, each followed by its right answer; the loss is the answer's."""
        tokens = mx.array([[*e.rows[0].tokens, e.targets[e.target][-1]] for e in examples])
        # The first and last predicted position that counts, from 1.
        lengths = mx.array([[e.rows[0].first_position + 1, len(e.rows[0].tokens)] for e in examples])

        def run(step: int) -> float:
            with self.scoped.installed(), self._layers():
                loss = self._step(tokens, lengths)
                mx.eval(self.state, loss)
            return loss.item()

        return run

    @contextmanager
    def _layers(self) -> Iterator[None]:
        """Puts mlx-lm's checkpointing around the layers for a turn: by itself it would stay for good."""
        from mlx_lm.tuner.trainer import grad_checkpoint

        layer = self.scoped.model.layers[0]
        plain = type(layer).__call__
        if self.checkpointing:
            grad_checkpoint(layer)
        try:
            yield
        finally:
            type(layer).__call__ = plain
