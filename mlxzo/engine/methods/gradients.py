"""Gradients of a micro-batch's losses by reverse-mode differentiation, with and without checkpointing.

Without, a micro-batch is one graph, and MLX keeps all that the backward pass needs. With checkpointing only the input
of every layer is kept (Chen et al. 2016, arXiv 1604.06174, one segment per layer): the backward pass takes the layers
from the last to the first, recomputes each, and evaluates its gradients before the next. `mx.checkpoint` around each
layer does not bound memory in this way: MLX may delay the gradients of weights, and keeps all that they need until
then.

The gradient of a lookup is a scatter-add. Where rows repeat (tokens of a trained embedding, several labels at one
position), MLX's GPU kernels add by atomic operations in no fixed order (mlx/backend/metal/kernels/indexing/scatter.h),
so that the same gradient has other last bits the next time. On a CPU the order is fixed, and forward passes add nothing
in this way.
"""

from __future__ import annotations

import mlx.core as mx

from ..batching import MicroBatch
from ..scoring import Scorer

Arrays = dict[str, mx.array]


class GradientSum:
    """Gradients by name, summed and evaluated as they come.

    Args:
        float32: sum in float32; otherwise in their own dtype, which is enough for a single micro-batch.
    """

    def __init__(self, float32: bool):
        self.arrays: Arrays = {}
        self._float32 = float32

    def add(self, gradients: Arrays, *others: mx.array) -> None:
        """Adds gradients of whole parameters and evaluates them and `others`; empties the mapping to free them."""
        names = list(gradients)
        for name in names:
            gradient = self._cast(gradients.pop(name))
            # MLX reuses the buffer of a sum that nothing else refers to.
            self.arrays[name] = self.arrays.pop(name) + gradient if name in self.arrays else gradient
            del gradient
        mx.eval([self.arrays[name] for name in names], *others)

    def add_rows(self, name: str, shape: tuple[int, ...], rows: mx.array, gradient: mx.array) -> None:
        """Adds a gradient [N, columns] of the rows numbered `rows` [N], which may repeat, of a parameter."""
        gradient = self._cast(gradient)
        total = self.arrays.pop(name) if name in self.arrays else mx.zeros(shape, gradient.dtype)
        self.arrays[name] = total.at[rows].add(gradient)
        del total
        mx.eval(self.arrays[name])

    def fill(self, parameters: Arrays) -> None:
        """Adds zero gradients for parameters that have none."""
        for name in parameters.keys() - self.arrays.keys():
            self.arrays[name] = self._cast(mx.zeros_like(parameters[name]))

    def _cast(self, gradient: mx.array) -> mx.array:
        return gradient.astype(mx.float32) if self._float32 else gradient


def add_gradients(
    scorer: Scorer, part: MicroBatch, given: Arrays, prefix: mx.array | None, share: float, total: GradientSum
) -> mx.array:
    """Adds the gradients of a micro-batch to `total`; returns the losses of its examples, float32 [B].

    Args:
        given: the parameters that train.
        prefix: hidden states of this micro-batch from the scorer's `prefix`; None without frozen layers.
        share: weight of each example in the differentiated loss: 1 / examples of the batch.
    """
    causal, tokens, positions = scorer.causal, mx.array(part.tokens), mx.array(part.positions)

    def loss(own: Arrays, looked_up: Arrays) -> tuple[mx.array, mx.array]:
        if not causal.splits:
            losses = scorer.losses_from_logits(part, own)
        else:
            calls = causal.layer_calls(tokens, own, looked_up)
            states = calls.embedded if prefix is None else prefix
            for number in range(scorer.layers, len(causal.layers)):
                states = causal.layer(number, own, states, calls, positions)
            losses = scorer.losses_after_layers(part, own, states)
        return losses.sum() * share, losses

    looked_up = causal.looked_up(tokens, given) if prefix is None and causal.splits else {}
    (_, losses), (gradients, of_rows) = mx.value_and_grad(loss, argnums=(0, 1))(given, looked_up)
    total.add(gradients, losses, *of_rows.values())
    _add_looked_up(total, given, tokens, of_rows)
    return losses


def add_checkpointed_gradients(
    scorer: Scorer, part: MicroBatch, given: Arrays, prefix: mx.array | None, share: float, total: GradientSum
) -> mx.array:
    """As `add_gradients`, with checkpointing; the model's layers must run one at a time (`CausalLM.splits`)."""
    causal, tokens, positions = scorer.causal, mx.array(part.tokens), mx.array(part.positions)
    by_layer = [{n: given[n] for n in causal.layer_names(i) if n in given} for i in range(len(causal.layers))]
    others = {name: value for name, value in given.items() if not any(name in own for own in by_layer)}
    calls = causal.layer_calls(tokens, {})
    inputs = [calls.embedded if prefix is None else prefix]
    for number in range(scorer.layers, len(causal.layers)):
        inputs.append(causal.layer(number, {}, inputs[-1], calls, positions))
        # One layer computes while the graph of the next one is built.
        mx.async_eval(inputs[-1])
        mx.eval(inputs[-2])

    def loss(own: Arrays, states: mx.array) -> tuple[mx.array, mx.array]:
        losses = scorer.losses_after_layers(part, own, states)
        return losses.sum() * share, losses

    (_, losses), (gradients, slope) = mx.value_and_grad(loss, argnums=(0, 1))(others, inputs.pop())
    total.add(gradients, losses, slope)
    embeds = prefix is None and bool(others)
    slopes: dict[int, list[mx.array]] = {}
    for number in reversed(range(scorer.layers, len(causal.layers))):
        # What a layer is passed beside the state may depend on the same weights as the embedding (Gemma 4).
        more = calls.floating(number) if embeds else []

        def through(
            own: Arrays, states: mx.array, more: list[mx.array], number: int = number, slope: mx.array = slope
        ) -> mx.array:
            of_layer = calls.with_floating(number, more) if more else calls
            return (causal.layer(number, own, states, of_layer, positions) * slope).sum()

        gradients, slope, slopes[number] = mx.grad(through, argnums=(0, 1, 2))(by_layer[number], inputs.pop(), more)
        total.add(gradients, slope, *slopes[number])
    if embeds:
        looked_up = causal.looked_up(tokens, others)
        own = {name: value for name, value in others.items() if name not in looked_up}

        def embed(own: Arrays, looked_up: Arrays) -> mx.array:
            made = causal.layer_calls(tokens, own, looked_up)
            pairs = [(made.embedded, slope)]
            for number, of_more in slopes.items():
                pairs += zip(made.floating(number), of_more, strict=True)
            return mx.stack([(array * of_array).sum() for array, of_array in pairs]).sum()

        gradients, of_rows = mx.grad(embed, argnums=(0, 1))(own, looked_up)
        total.add(gradients, *of_rows.values())
        _add_looked_up(total, given, tokens, of_rows)
    return losses


def _add_looked_up(total: GradientSum, given: Arrays, tokens: mx.array, of_rows: Arrays) -> None:
    for name, gradient in of_rows.items():
        total.add_rows(name, given[name].shape, tokens.reshape(-1), gradient)
