"""Backpropagation: exact gradients of the same loss on the same batches, and steps of SGD, Adam or AdamW.

In memory at the peak, beside the weights at rest:

- the optimiser's state: two float32 values per trained weight for Adam, none for SGD;
- the gradients of all trained weights, in the dtype of the weights, or in float32 where several micro-batches are
  summed;
- activations of one micro-batch from the first trained layer on: without checkpointing all that the backward pass
  needs; with checkpointing the input of each layer, and forward and backward pass of the one layer being recomputed.
  Inputs are freed as gradients are made, so for whole layers the peak is at the first or at the last layer;
- logits of the supervised positions, a few chunks of 4 MB at a time (only those of the label words, where these are
  single tokens); they are freed before the first layer's backward pass. A head that trains has a gradient in two parts
  at that moment, two or three arrays of its own size.

All gradients are complete before the first weight moves. The update then goes through them by tensor and 16 MB at a
time, and frees each when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np

from ...core.errors import ConfigError
from ...core.lr_schedule import learning_rate
from ...core.resolved_config import ResolvedConfig
from ...models.slots import Slot
from ...models.trainable import Trainable
from ...zo.inplace import rewrite
from ...zo.rounding import rounded
from ..batching import Batch
from ..distributed.communicator import Communicator, Piece
from ..scoring import Scorer
from . import Method, StepResult
from .gradients import Arrays, GradientSum, add_checkpointed_gradients, add_gradients


class Backprop(Method):
    """First-order steps on the parameters in `trainable`, with MLX's own optimisers.

    Adam corrects the bias of its means (Kingma & Ba 2015, Algorithm 1), which MLX omits by default. Weight decay is
    decoupled from the gradient (Loshchilov & Hutter 2019) and applies to matrices only, as in MeZO; so Adam with weight
    decay is AdamW. The optimiser's state is float32; half-precision weights have no float32 copy and are rounded
    stochastically, with random bits derived from the seed and the step.

    Args:
        scorer: with its frozen layers and activation cache.
        trainable: the parameters that move.
        team: the ranks that share the micro-batches; None for a run in one process.

    Raises:
        ConfigError: checkpointing is on, and the model's layers cannot be run one at a time.
    """

    def __init__(self, scorer: Scorer, trainable: Trainable, config: ResolvedConfig, team: Communicator | None = None):
        self.scorer, self.slots = scorer, scorer.causal.slots
        self.team = team or Communicator()
        self.trainable, self.config = trainable, config
        self.checkpointing = config.checkpointing == "on"
        if self.checkpointing and not scorer.causal.splits:
            raise ConfigError(
                "this model's layers cannot be run one at a time, as gradient checkpointing must",
                "use --checkpointing off",
            )
        self.rates = {name: config.parsed_scope.bp_rate_ratio(kind) for name, kind in trainable.kinds.items()}
        self.optimizer = _optimizer(config)
        self.states = {name: self._initial_state(name) for name in trainable.names}
        mx.eval(self.states)

    def step(self, step: int, batch: Batch) -> StepResult:
        config = self.config
        lr = learning_rate(config.lr, config.schedule, step, config.steps, config.warmup_steps)
        loss, gradients = self.gradients(batch)
        if math.isfinite(loss):
            self._move(gradients, step, lr)
        return StepResult(loss, lr)

    def gradients(self, batch: Batch) -> tuple[float, Arrays]:
        """Mean loss of the batch, and its gradients by name, summed over the micro-batches in order.

        Each rank sums the gradients of its micro-batches, and the sums are added over the network, so that the last
        bits depend on the number of ranks.
        """
        add = add_checkpointed_gradients if self.checkpointing else add_gradients
        given = {name: self.slots[name].get() for name in self.trainable.names}
        total = GradientSum(float32=len(batch.parts) > 1)

        def compute(numbers: Sequence[int]) -> list[np.ndarray]:
            own = batch.picked(numbers)
            prefix = self.scorer.prefix(own)
            losses = []
            for i, part in enumerate(own.parts):
                self.scorer.causal.interrupt()
                found = add(self.scorer, part, given, None if prefix is None else prefix[i], 1.0 / batch.size, total)
                losses.append(np.array(found, np.float64))
            return losses

        pieces = [
            Piece(float(part.tokens.size), (len(places),))
            for part, places in zip(batch.parts, batch.places, strict=True)
        ]
        losses = np.empty(batch.size)
        for places, found in zip(batch.places, self.team.scatter_gather(pieces, compute, steady=True), strict=True):
            losses[list(places)] = found
        # A rank without a micro-batch adds zeros.
        total.fill(given)
        return float(losses.mean()), dict(self.team.sum(total.arrays))

    def _move(self, gradients: Arrays, step: int, lr: float) -> None:
        self.optimizer.state["step"] = self.optimizer.step + 1
        for name in self.trainable.names:
            self._move_one(name, gradients.pop(name), step, lr * self.rates[name])

    def _move_one(self, name: str, gradient: mx.array, step: int, lr: float) -> None:
        """Moves one tensor and its state by its gradient."""
        optimizer, state = self.optimizer, self.states[name]
        shape = gradient.shape
        gradient = gradient.reshape(-1, shape[-1] if shape else 1)
        kept = 1.0 - lr * self.config.weight_decay if len(shape) > 1 else 1.0
        optimizer.learning_rate = lr

        def moved(rows: range, weight: mx.array, *of_state: mx.array) -> list[mx.array]:
            after = dict(zip(state, of_state, strict=True))
            piece = gradient[rows.start : rows.stop].astype(mx.float32)
            new = optimizer.apply_single(piece, weight.astype(mx.float32) * kept, after)
            numbers = mx.arange(rows.start, rows.stop)
            return [rounded(new, weight.dtype, name, shape, numbers, self.config.seed, step), *after.values()]

        rewrite([self.slots[name], *(Slot(state, key) for key in state)], moved)

    def state(self) -> Arrays:
        """The optimiser's means as `optimizer.<parameter>.<mean>`, each in the shape of its parameter."""
        return {f"optimizer.{name}.{key}": mean for name, means in self.states.items() for key, mean in means.items()}

    def restore(self, state: Mapping[str, mx.array], step: int) -> None:
        """Takes back the state that `state` returned after `step` steps."""
        for name, means in self.states.items():
            means.update({key: state[f"optimizer.{name}.{key}"] for key in means})
        self.optimizer.state["step"] = mx.array(step, self.optimizer.step.dtype)

    def _initial_state(self, name: str) -> Arrays:
        state: Arrays = {}
        if not isinstance(self.optimizer, optimizers.SGD):
            self.optimizer.init_single(mx.zeros(self.slots[name].get().shape), state)
        return state


def _optimizer(config: ResolvedConfig) -> optimizers.Optimizer:
    if config.optimizer == "sgd":
        return optimizers.SGD(config.lr)
    return optimizers.Adam(config.lr, bias_correction=True)
