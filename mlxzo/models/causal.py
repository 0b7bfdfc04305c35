"""A causal language model of mlx-lm as embedding, decoder layers and head, with weights read through a view.

A view defines the effective weights of one forward pass: the stored ones cast to the compute dtype, or perturbed. They
are lazy and in place only while the graph is built, so the stored weights never change and an effective weight exists
only while its layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..zo.chunks import CHUNK_BYTES
from ..zo.perturb import Direction, Perturbation, View
from .head import Head, LogitTransform
from .last_layer import TRIAL_TOKENS, agrees, at_positions, output_at
from .lazy_layers import (
    EagerLayer,
    EmbeddingRows,
    Given,
    Inject,
    LinearRows,
    PassThrough,
    Recorder,
    RemadeLinear,
)
from .slots import Slot, decoder, decoder_layers, names_by_layer, parameter_slots, slots_of_kind


@dataclass(frozen=True)
class LayerCalls:
    """The arguments of a model's decoder layers for one micro-batch: `embedded` [R, T, D] for the first layer, and the
    further arguments of each."""

    embedded: mx.array
    args: list[tuple]
    kwargs: list[dict[str, Any]]


class CausalLM:
    """Hidden states and head scores of a model under a view.

    Args:
        model: an mlx-lm causal model.
        compute_dtype: dtype that weights are cast to while computing; None for native. On the CPU float32 is used,
            because half-precision matrix products there bypass BLAS (60 times slower).
        interrupt: called before each layer of a forward pass and before each micro-batch of a backward pass, with the
            stored weights in place; it may raise to abandon the pass.

    Attributes:
        slots: the place of every parameter.
        exposes_hidden: hidden states times head agree with the model's own logits, so only supervised positions
            need the head; otherwise full logits are computed.
        hidden_size: width D of the hidden states.
        splits: the layers can be run one at a time, over several micro-batches, and from any layer on.
        splits_last: the last layer can be run at some positions only (see `last_layer`); otherwise it is run whole.
        plain_calls: the hidden states are the only floating array that layers are passed, so the only argument that
            depends on weights.
    """

    def __init__(
        self, model: nn.Module, compute_dtype: mx.Dtype | None = None, interrupt: Callable[[], None] = lambda: None
    ):
        model.eval()
        self.model = model
        self.compute_dtype = compute_dtype
        self.interrupt = interrupt
        self.slots = parameter_slots(model)
        path, owner = decoder(model)
        # The models of mlx-lm have no base class in common; `_check` tries the parts that are needed here.
        self.body: Any = getattr(owner, "model", None)
        self.layers = decoder_layers(model)
        self.embedding: Any = self.body.get("embed_tokens") if isinstance(self.body, nn.Module) else None
        self.embedding_name = f"{path}model.embed_tokens"
        tied = "lm_head" not in owner
        head, name = (self.embedding, self.embedding_name) if tied else (owner["lm_head"], f"{path}lm_head")
        self.head = Head(head, name, LogitTransform.of(owner))
        self._linears = slots_of_kind(model, nn.Linear, nn.QuantizedLinear)
        self._layer_names, self._other_names = names_by_layer(self.slots, f"{path}model.layers.", len(self.layers))
        # True during the check already, so that the embedding is read by rows: it may be the largest matrix.
        self.exposes_hidden, self.splits, self.splits_last, self.plain_calls = True, False, False, False
        self.hidden_size = 0
        self.exposes_hidden, self.splits = self._check()
        self.splits_last = self.splits and self._check_last()

    def view(self, direction: Direction | None = None, eps: float = 0.0) -> View:
        """Weights at w + eps * z, or without a direction as they are stored, cast to the compute dtype."""
        if direction is None:
            return View(self.compute_dtype)
        return Perturbation(direction, eps, self.compute_dtype)

    @property
    def vocabulary(self) -> int:
        return self.head.vocabulary

    def hidden(
        self,
        tokens: Sequence[mx.array],
        positions: Sequence[mx.array],
        view: View,
        prefix: Sequence[mx.array] | None = None,
        layers: int = 0,
    ) -> list[mx.array]:
        """Hidden states after the final norm at some positions of several micro-batches.

        Effective weights of a layer are made once for all micro-batches, and freed before those of the next layer but
        one are made.

        Args:
            tokens: int32 [R, T] per micro-batch.
            positions: int32 [S] per micro-batch, into the flattened [R * T].
            prefix: the result of `prefix` for the same micro-batches; where it covers all layers, at `positions` only:
                [S, D] each.
            layers: number of layers that `prefix` covers.

        Returns:
            [S, D] per micro-batch.
        """
        if not self.splits:
            return [at_positions(p, self._whole(t, view)) for t, p in zip(tokens, positions, strict=True)]
        if prefix is not None and layers == len(self.layers):
            states = list(prefix)
        else:
            states = self.after_layers(tokens, positions, view, prefix, layers)
        # The final norm treats each position by itself, so those of all micro-batches can share one call.
        ends = np.cumsum([len(s) for s in states])[:-1].tolist()
        return list(mx.split(self.finished(mx.concatenate(states), view), ends))

    def after_layers(
        self,
        tokens: Sequence[mx.array],
        positions: Sequence[mx.array],
        view: View,
        prefix: Sequence[mx.array] | None = None,
        layers: int = 0,
    ) -> list[mx.array]:
        """Hidden states after the last layer, before the final norm, at some positions: [S, D] per micro-batch.

        Args:
            tokens, positions: as for `hidden`.
            prefix: the result of `prefix` for `layers` layers, fewer than all.
        """
        calls = [self._layer_calls(t, view) for t in tokens]
        return self._through(calls, prefix, view, layers, len(self.layers), positions)

    def looked_up(self, tokens: mx.array, given: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The embedding rows of `tokens`, [N, columns] under the embedding's name, if that is in `given`; else {}.

        Their gradient is small, and can be added to that of the embedding in place.
        """
        name = f"{self.embedding_name}.weight"
        if name not in given or not self._embeds_by_rows():
            return {}
        return {name: given[name][tokens.reshape(-1)]}

    def layer_calls(
        self, tokens: mx.array, given: Mapping[str, mx.array], looked_up: Mapping[str, mx.array] | None = None
    ) -> LayerCalls:
        """The arguments of the layers for `tokens` [R, T], as functions of the weights `given` and `looked_up`."""
        return self._layer_calls(tokens, Given(given, self.compute_dtype, looked_up))

    def layer(
        self,
        number: int,
        given: Mapping[str, mx.array],
        hidden: mx.array,
        calls: LayerCalls,
        positions: mx.array | None = None,
    ) -> mx.array:
        """Output of one decoder layer as a function of `given` and its input; not evaluated.

        Args:
            positions: int32 [S], into the flattened [R * T], of the states needed after the last layer.

        Returns:
            [R, T, D]; [S, D] of the last layer if `positions` are given.
        """
        with self._installed(Given(given, self.compute_dtype), self._layer_names[number]):
            return self._output(number, hidden, calls, positions)

    def layer_names(self, number: int) -> list[str]:
        """Names of a decoder layer's parameters."""
        return self._layer_names[number]

    def finished(self, states: mx.array, view: View) -> mx.array:
        """Hidden states [S, D] after the final norm, from those after the last layer; not evaluated."""
        skipped = [PassThrough(layer) for layer in self.layers[:-1]]
        replaced = [*skipped, Inject(self.layers[-1], states[None])]
        with self._installed(view, self._other_names), self._layers_replaced(replaced):
            # The token has no effect: the replacement of the last layer discards its hidden state.
            return self.body(mx.zeros((1, 1), mx.int32))[0]

    def prefix(self, tokens: Sequence[mx.array], view: View, layers: int) -> list[mx.array]:
        """The input of layer `layers` of several micro-batches: [R, T, D] each. Later layers are not computed."""
        return self._through([self._layer_calls(t, view) for t in tokens], None, view, 0, layers)

    def states_after_layers(self, tokens: Sequence[mx.array], view: View) -> Iterator[list[mx.array]]:
        """Hidden states after each layer in turn, [R, T, D] per micro-batch; the caller evaluates what it uses."""
        calls, states = [self._layer_calls(t, view) for t in tokens], None
        for number in range(len(self.layers)):
            states = self._through(calls, states, view, number, number + 1)
            yield states

    def _whole(self, tokens: mx.array, view: View) -> mx.array:
        with self._installed(view, self.slots):
            hidden = self.body(tokens)
        # Evaluated with the stored weights back in place, so that each effective weight is freed after its layer.
        mx.eval(hidden)
        return hidden

    def _through(
        self,
        calls: list[LayerCalls],
        hidden: Sequence[mx.array] | None,
        view: View,
        first: int,
        last: int,
        positions: Sequence[mx.array] | None = None,
    ) -> list[mx.array]:
        """Hidden states before layer `last`, from those before layer `first` (None: the embedded tokens); after the
        last layer of all, [S, D] at `positions` if they are given."""
        wanted = positions or [None] * len(calls)
        hidden = [call.embedded for call in calls] if hidden is None else list(hidden)
        before: list[mx.array] = []
        for number in range(first, last):
            self.interrupt()
            with self._installed(view, self._layer_names[number]):
                hidden = [self._output(number, *of_part) for of_part in zip(hidden, calls, wanted, strict=True)]
            # One layer computes while the graph of the next is built, and micro-batches follow one another: that bounds
            # the memory. Evaluated in one call, all micro-batches would be in flight together.
            for states in hidden:
                mx.async_eval(states)
            mx.eval(before)
            before = hidden
        return hidden

    def _output(self, number: int, hidden: mx.array, calls: LayerCalls, positions: mx.array | None) -> mx.array:
        """As `layer`, with the weights that are in place."""
        layer, args, kwargs = self.layers[number], calls.args[number], calls.kwargs[number]
        if positions is None or number + 1 < len(self.layers):
            return layer(hidden, *args, **kwargs)
        if self.splits_last:
            return output_at(positions, layer, hidden, args, kwargs)
        return at_positions(positions, layer(hidden, *args, **kwargs))

    def _by_layer(self, module: nn.Module, tokens: mx.array, view: View, **more: Any) -> mx.array:
        """The output of the model or its body, evaluated layer by layer: in one graph, MLX would cast or dequantise the
        weights of many layers before the first of them computes."""
        alone = [
            EagerLayer(layer, partial(self._installed, view, names))
            for layer, names in zip(self.layers, self._layer_names, strict=True)
        ]
        with self._installed(view, self._other_names), self._layers_replaced(alone):
            result = module(tokens, **more)
        mx.eval(result)
        return result

    def _layer_calls(self, tokens: mx.array, view: View) -> LayerCalls:
        """The arguments that the model passes to its layers for `tokens` [R, T], recorded from a call of its body."""
        recorders = [Recorder(layer) for layer in self.layers]
        with self._installed(view, self._other_names), self._layers_replaced(recorders):
            self.body(tokens)
        return LayerCalls(recorders[0].seen, [r.args for r in recorders], [r.kwargs for r in recorders])

    def logits(self, tokens: mx.array, view: View) -> mx.array:
        """The model's own logits for every position: [R, T, V]."""
        with self._installed(view, self.slots):
            return self.model(tokens)

    def read_on(self, tokens: mx.array, caches: Sequence[Any], positions: mx.array, view: View) -> mx.array:
        """States at some positions of tokens int32 [R, T] that continue the caches; the caches are extended by them.

        Args:
            caches: keys and values, one of mlx-lm's caches a layer.
            positions: int32 [S], into the flattened [R * T].

        Returns:
            Float32 hidden states after the final norm [S, D]; logits [S, V] of a model without `exposes_hidden`.
        """
        self.interrupt()
        if self.exposes_hidden:
            states = self._by_layer(self.body, tokens, view, cache=caches)
        else:
            with self._installed(view, self.slots):
                states = self.model(tokens, cache=caches)
        return at_positions(positions, states).astype(mx.float32)

    def next_logits(self, states: mx.array, view: View) -> mx.array:
        """Logits [S, V] of the tokens that may follow the states that `read_on` returned; evaluated."""
        logits = self.head.logits(states, view) if self.exposes_hidden else states
        mx.eval(logits)
        return logits

    @contextmanager
    def _installed(self, view: View, names: Iterable[str]) -> Iterator[None]:
        """Puts the effective weights of `names` in place while a graph is built, and restores the stored ones.

        A large matrix is not made whole: a replacement of its layer makes it in chunks of rows while it computes.
        """
        replaced: list[tuple[Slot, Any]] = []

        def put(slot: Slot, value: Any) -> None:
            replaced.append((slot, slot.get()))
            slot.set(value)

        done: set[str] = set()
        try:
            for name in names:
                if name in done:
                    continue
                path, _, leaf = name.rpartition(".")
                linear = self._linears.get(path)
                if path == self.embedding_name and leaf == "weight" and self._embeds_by_rows():
                    put(Slot(self.body, "embed_tokens"), EmbeddingRows(self.embedding, path, view))
                elif linear is not None and (replacement := self._replacement(linear.get(), path, view)) is not None:
                    put(linear, replacement)
                    done |= {f"{path}.{leaf}" for leaf in ("weight", "scales", "biases", "bias")}
                elif view.changes(name, self.slots[name].get()):
                    put(self.slots[name], view.dense(name, self.slots[name].get()))
            yield
        finally:
            for slot, value in reversed(replaced):
                slot.set(value)

    def _embeds_by_rows(self) -> bool:
        return type(self.embedding) is nn.Embedding and self.exposes_hidden

    def _replacement(self, linear: nn.Module, path: str, view: View) -> nn.Module | None:
        """A module that makes the effective weight of a linear layer as it computes; None if that is made whole."""
        weight, quantised = linear["weight"], "scales" in linear
        # MLX's quantised product on the CPU is some 20 times slower than dequantising and multiplying by BLAS.
        dequantised = quantised and self.compute_dtype is not None
        if isinstance(view, Given):
            cast = not quantised and weight.dtype != (self.compute_dtype or weight.dtype)
            return RemadeLinear(linear, path, view) if dequantised or cast else None
        large = not quantised and 4 * weight.size > CHUNK_BYTES and view.changes(f"{path}.weight", weight)
        return LinearRows(linear, path, view) if dequantised or large else None

    @contextmanager
    def _layers_replaced(self, layers: list) -> Iterator[None]:
        kept = list(self.layers)
        self.layers[:] = layers
        try:
            yield
        finally:
            self.layers[:] = kept

    def _check(self) -> tuple[bool, bool]:
        """Values of `exposes_hidden` and `splits`, tried on a few tokens rather than listed by architecture."""
        heads = (nn.Embedding, nn.Linear, nn.QuantizedEmbedding, nn.QuantizedLinear)
        if not self.layers or not isinstance(self.head.module, heads):
            return False, False
        tokens = mx.array([[1, 2, 3, 5, 7]], mx.int32)
        view = self.view()
        try:
            full = self._by_layer(self.model, tokens, view)[0].astype(mx.float32)
            hidden = self._by_layer(self.body, tokens, view)[0]
            everywhere = [mx.arange(tokens.size)]
            self.hidden_size = hidden.shape[-1]
            chosen = mx.arange(0, self.vocabulary, max(1, self.vocabulary // 50))
            for position in range(tokens.shape[1]):
                repeated = mx.broadcast_to(hidden[position], (chosen.size, hidden.shape[-1]))
                ours = self.head.token_logits(repeated, chosen, view)
                # The same product in another order differs by rounding only.
                scale = mx.maximum(mx.abs(full).max(), 1e-6)
                tolerance = 1e-4 if full.dtype == hidden.dtype == mx.float32 else 5e-2
                if not (mx.abs(ours - full[position][chosen]).max() <= tolerance * scale).item():
                    return False, False
        except (TypeError, ValueError, AttributeError, KeyError):
            return False, False
        self.splits = True
        try:
            calls = self._layer_calls(tokens, view)
            passed = [leaf for _, leaf in tree_flatten([calls.args, calls.kwargs]) if isinstance(leaf, mx.array)]
            self.plain_calls = not any(mx.issubdtype(array.dtype, mx.floating) for array in passed)
            cut = len(self.layers) // 2
            prefix = self.prefix([tokens], view, cut)
            for states, layers in ((None, 0), (prefix, cut)):
                if not mx.array_equal(self.hidden([tokens], everywhere, view, states, layers)[0], hidden).item():
                    return True, False
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            return True, False
        return True, True

    def _check_last(self) -> bool:
        """The value of `splits_last`, tried on two short rows."""
        tokens, last = mx.array(TRIAL_TOKENS, mx.int32), len(self.layers) - 1
        # In float32, so that only a real difference exceeds rounding, whatever the dtype of the weights.
        view = View(mx.float32)
        (states,), calls = self.prefix([tokens], view, last), self._layer_calls(tokens, view)
        with self._installed(view, self._layer_names[last]):
            return agrees(self.layers[last], states, calls.args[last], calls.kwargs[last])
