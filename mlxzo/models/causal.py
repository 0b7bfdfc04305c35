"""A causal language model of mlx-lm as embedding, decoder layers and head, with weights read through a view.

A view defines the effective weights of one forward pass: the stored ones cast to the compute dtype, or perturbed. They
are lazy and in place only while the graph is built, so the stored weights never change and an effective weight exists
only while its layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..zo.perturb import Direction, Perturbation, Population, View
from .effective_weights import EffectiveWeights
from .head import Head, LogitTransform
from .last_layer import TRIAL_TOKENS, agrees, at_positions, output_at
from .layer_calls import LayerCalls, Wiring
from .lazy_layers import EagerLayer, Given, Inject, Observer, PassThrough, Recorder, hidden_states
from .slots import decoder, decoder_layers, names_by_layer
from .streams import side_by_side


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
        wiring: what the state between two layers holds beside the hidden states (see `layer_calls`).
    """

    def __init__(
        self, model: nn.Module, compute_dtype: mx.Dtype | None = None, interrupt: Callable[[], None] = lambda: None
    ):
        model.eval()
        self.model = model
        self.compute_dtype = compute_dtype
        self.interrupt = interrupt
        self.weights = EffectiveWeights(model, compute_dtype)
        self.slots = self.weights.slots
        path, owner = decoder(model)
        # The models of mlx-lm have no base class in common; `_check` tries the parts that are needed here.
        self.body: Any = getattr(owner, "model", None)
        self.layers = decoder_layers(model)
        self.embedding: Any = self.body.get("embed_tokens") if isinstance(self.body, nn.Module) else None
        self.embedding_name = f"{path}model.embed_tokens"
        tied = "lm_head" not in owner
        head, name = (self.embedding, self.embedding_name) if tied else (owner["lm_head"], f"{path}lm_head")
        self.head = Head(head, name, LogitTransform.of(owner))
        self._layer_names, self._other_names = names_by_layer(self.slots, f"{path}model.layers.", len(self.layers))
        self.wiring = Wiring(0, ((),) * len(self.layers), {})
        self.splits_last = False
        self.exposes_hidden, self.splits = self._check()
        self.weights.reads_rows = self.exposes_hidden
        self.splits_last = self.splits and self._check_last()

    def view(self, direction: Direction | None = None, eps: float = 0.0) -> View:
        """Weights at w + eps * z, or without a direction as they are stored, cast to the compute dtype."""
        if direction is None:
            return View(self.compute_dtype)
        return Perturbation(direction, eps, self.compute_dtype)

    @property
    def vocabulary(self) -> int:
        return self.head.vocabulary

    @property
    def hidden_size(self) -> int:
        return self.wiring.hidden_size

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
            prefix: the result of `prefix` for the same micro-batches; where it covers all layers, that of
                `after_layers`.
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
        if name not in given or not self.weights.reads_rows:
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
        state: mx.array,
        calls: LayerCalls,
        positions: mx.array | None = None,
    ) -> mx.array:
        """The state after one decoder layer as a function of `given` and the state before it; not evaluated.

        Args:
            positions: int32 [S], into the flattened [R * T], of the states needed after the last layer.

        Returns:
            [R, T, W]; [S, D] of the last layer if `positions` are given.
        """
        view = Given(given, self.compute_dtype)
        with _in_training_mode(self.layers[number]), self.weights.installed(view, self._layer_names[number]):
            return self._output(number, state, calls, positions)

    def layer_names(self, number: int) -> list[str]:
        """Names of a decoder layer's parameters."""
        return self._layer_names[number]

    def finished(self, states: mx.array, view: View) -> mx.array:
        """Hidden states [S, D] after the final norm, from those after the last layer; not evaluated."""
        *before, last = zip(self.layers, self.wiring.rest, strict=True)
        replaced = [*(PassThrough(*layer) for layer in before), Inject(states[None], *last)]
        with self.weights.installed(view, self._other_names), self._layers_replaced(replaced):
            # The token has no effect: the replacement of the last layer discards its hidden state.
            return self.body(mx.zeros((1, 1), mx.int32))[0]

    def prefix(self, tokens: Sequence[mx.array], view: View, layers: int) -> list[mx.array]:
        """The state before layer `layers` of several micro-batches, [R, T, W] each. Later layers are not computed."""
        return self._through([self._layer_calls(t, view) for t in tokens], None, view, 0, layers)

    def states_after_layers(self, tokens: Sequence[mx.array], view: View) -> Iterator[list[mx.array]]:
        """Hidden states after each layer in turn, [R, T, D] per micro-batch."""
        calls, states = [self._layer_calls(t, view) for t in tokens], None
        for number in range(len(self.layers)):
            states = self._through(calls, states, view, number, number + 1)
            yield [state[..., : self.hidden_size] for state in states]

    def _whole(self, tokens: mx.array, view: View) -> mx.array:
        with self.weights.installed(view, self.slots):
            hidden = self.body(tokens)
        # Evaluated with the stored weights back in place, so that each effective weight is freed after its layer.
        mx.eval(hidden)
        return hidden

    def _through(
        self,
        calls: list[LayerCalls],
        states: Sequence[mx.array] | None,
        view: View,
        first: int,
        last: int,
        positions: Sequence[mx.array] | None = None,
    ) -> list[mx.array]:
        """The states before layer `last`, from those before layer `first` (None: the embedded tokens); after the last
        layer of all, [S, D] at `positions` if they are given."""
        wanted = positions or [None] * len(calls)
        states = [call.embedded for call in calls] if states is None else list(states)
        before: list[mx.array] = []
        with side_by_side() as streams:
            for number in range(first, last):
                self.interrupt()
                after: list[mx.array] = []
                with self.weights.installed(view, self._layer_names[number]):
                    for of_part, stream in zip(zip(states, calls, wanted, strict=True), cycle(streams), strict=False):
                        with mx.stream(stream):
                            after.append(self._output(number, *of_part))
                # One layer computes while the graph of the next is built, and micro-batches follow one another: that
                # bounds the memory. Evaluated in one call, all micro-batches would be in flight together.
                for state in after:
                    mx.async_eval(state)
                mx.eval(before)
                before = states = after
            mx.eval(states)
        return states

    def _output(self, number: int, state: mx.array, calls: LayerCalls, positions: mx.array | None) -> mx.array:
        """As `layer`, with the weights that are in place."""
        layer = self.layers[number]
        hidden, args, kwargs = self.wiring.arguments(number, state, calls)
        if positions is None or number + 1 < len(self.layers):
            return self.wiring.passed_on(number, state, layer(hidden, *args, **kwargs))
        if self.splits_last:
            return output_at(positions, layer, hidden, args, kwargs)
        return at_positions(positions, hidden_states(layer(hidden, *args, **kwargs)))

    def _by_layer(
        self,
        module: nn.Module,
        tokens: mx.array,
        view: View,
        kind: type[EagerLayer] = EagerLayer,
        before: tuple[int, mx.array] | None = None,
        **more: Any,
    ) -> tuple[mx.array, list]:
        """The output of the model or its body, evaluated layer by layer, and what stood in the places of the layers.

        In one graph, MLX would cast or dequantise the weights of many layers before the first of them computes.

        Args:
            before: a number of first layers that are not computed, and their output.
        """
        alone = [
            kind(layer, partial(self.weights.installed, view, names))
            for layer, names in zip(self.layers, self._layer_names, strict=True)
        ]
        if before is not None:
            count, states = before
            *skipped, last = zip(self.layers[:count], self.wiring.rest, strict=False)
            alone = [*(PassThrough(*layer) for layer in skipped), Inject(states, *last), *alone[count:]]
        with self.weights.installed(view, self._other_names), self._layers_replaced(alone):
            result = module(tokens, **more)
        mx.eval(result)
        return result, alone

    def _layer_calls(self, tokens: mx.array, view: View, rest: Sequence[tuple] | None = None) -> LayerCalls:
        """The arguments that the model passes to its layers for `tokens` [R, T], recorded from a call of its body."""
        recorders = [*map(Recorder, self.layers, rest or self.wiring.rest)]
        with self.weights.installed(view, self._other_names), self._layers_replaced(recorders):
            self.body(tokens)
        return LayerCalls(recorders[0].seen, [r.args for r in recorders], [r.kwargs for r in recorders])

    def logits(self, tokens: mx.array, view: View) -> mx.array:
        """The model's own logits for every position: [R, T, V]."""
        training = _in_training_mode(self.model) if isinstance(view, Given) else nullcontext()
        with training, self.weights.installed(view, self.slots):
            return self.model(tokens)

    def read_first(self, tokens: mx.array, caches: Sequence[Any], layers: int) -> mx.array:
        """Hidden states [R, T, D] after the first layers, with the stored weights, of tokens int32 [R, T] that continue
        the caches; the caches of these layers are extended by them."""
        self.interrupt()
        view = self.view()
        alone = [
            Observer(layer, partial(self.weights.installed, view, names))
            for layer, names in zip(self.layers[:layers], self._layer_names, strict=False)
        ]
        others = [PassThrough(*layer) for layer in zip(self.layers[layers:], self.wiring.rest[layers:], strict=True)]
        with self.weights.installed(view, self._other_names), self._layers_replaced([*alone, *others]):
            self.body(tokens, cache=caches)
        return hidden_states(alone[-1].returned)

    def read_on(
        self,
        tokens: mx.array,
        caches: Sequence[Any],
        positions: mx.array,
        view: View,
        before: tuple[int, mx.array] | None = None,
    ) -> mx.array:
        """States at some positions of tokens int32 [R, T] that continue the caches; the caches are extended by them.

        Args:
            caches: keys and values, one of mlx-lm's caches a layer.
            positions: int32 [S], into the flattened [R * T].
            before: a number of first layers, and their output for these tokens [R, T, D] (see `read_first`): they are
                not computed, and their caches neither read nor extended.

        Returns:
            Float32 hidden states after the final norm [S, D]; logits [S, V] of a model without `exposes_hidden`.
        """
        self.interrupt()
        if self.exposes_hidden:
            states, _ = self._by_layer(self.body, tokens, view, before=before, cache=caches)
        else:
            with self.weights.installed(view, self.slots):
                states = self.model(tokens, cache=caches)
        return at_positions(positions, states).astype(mx.float32)

    def supports(self, population: Population, views: Sequence[View]) -> bool:
        """True if a batch under a population has the states of each member by itself, tried on a few tokens.

        Args:
            views: the weights of each member.
        """
        tokens = mx.array([[1, 2, 3, 5]] * len(views), mx.int32)
        positions = mx.arange(tokens.size)

        def states(rows: mx.array, view: View) -> mx.array:
            caches = [cache.merge([cache] * len(rows)) for cache in make_prompt_cache(self.model)]
            return self.read_on(rows, caches, positions[: rows.size], view)

        if not self.exposes_hidden:
            return False
        alone = mx.concatenate([states(tokens[:1], view) for view in views])
        try:
            together = states(tokens, population.of_rows(range(len(views))))
            # Rounding is far below what a wrong row would change.
            limit = (1e-3 if self.compute_dtype == mx.float32 else 5e-2) * mx.abs(alone).max()
            return together.shape == alone.shape and bool((mx.abs(together - alone).max() <= limit).item())
        except (TypeError, ValueError, AttributeError, KeyError):
            return False

    def next_logits(self, states: mx.array, view: View) -> mx.array:
        """Logits [S, V] of the tokens that may follow the states that `read_on` returned; evaluated."""
        logits = self.head.logits(states, view) if self.exposes_hidden else states
        mx.eval(logits)
        return logits

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
            full = self._by_layer(self.model, tokens, view)[0][0].astype(mx.float32)
            with side_by_side():
                (hidden,), observers = self._by_layer(self.body, tokens, view, Observer)
            everywhere = [mx.arange(tokens.size)]
            self.wiring = replace(self.wiring, hidden_size=hidden.shape[-1])
            chosen = mx.arange(0, self.vocabulary, max(1, self.vocabulary // 50))
            # The same product in another order differs by rounding only.
            tolerance = 1e-4 if full.dtype == hidden.dtype == mx.float32 else 5e-2
            scale = mx.maximum(mx.abs(full).max(), 1e-6)
            for position in range(tokens.shape[1]):
                repeated = mx.broadcast_to(hidden[position], (chosen.size, hidden.shape[-1]))
                ours = self.head.token_logits(repeated, chosen, view)
                if not (mx.abs(ours - full[position][chosen]).max() <= tolerance * scale).item():
                    return False, False
        except (TypeError, ValueError, AttributeError, KeyError):
            return False, False
        self.splits = True
        try:
            returned = [observer.returned for observer in observers]
            self.wiring = Wiring.found(returned, lambda rest: self._layer_calls(tokens, view, rest))
            # Arrays that the state carries come to a layer in another place in memory, where a product may round anew.
            limit = (tolerance if self.wiring.carried else 0.0) * mx.abs(hidden).max()
            cut = len(self.layers) // 2
            prefix = self.prefix([tokens], view, cut)
            for states, layers in ((None, 0), (prefix, cut)):
                (found,) = self.hidden([tokens], everywhere, view, states, layers)
                if not (mx.abs(found - hidden).max() <= limit).item():
                    return True, False
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            return True, False
        return True, True

    def _check_last(self) -> bool:
        """The value of `splits_last`, tried on two short rows."""
        tokens, last = mx.array(TRIAL_TOKENS, mx.int32), len(self.layers) - 1
        # In float32, so that only a real difference exceeds rounding, whatever the dtype of the weights.
        view = View(mx.float32)
        (state,), calls = self.prefix([tokens], view, last), self._layer_calls(tokens, view)
        with self.weights.installed(view, self._layer_names[last]):
            return agrees(self.layers[last], *self.wiring.arguments(last, state, calls))


@contextmanager
def _in_training_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module in its training mode while a graph is built that is differentiated: the Metal kernels that some
    layers use otherwise (Qwen3.5) have no gradient."""
    module.train()
    try:
        yield
    finally:
        module.eval()
