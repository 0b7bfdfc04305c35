"""A causal language model of mlx-lm, seen as embedding, decoder layers and head, with weights read through a view.

A view says what each stored weight looks like during one forward pass: cast to the compute dtype, or perturbed. It
is built lazily and put in place only while the graph is made, so stored weights are never touched and an effective
weight lives only while its layer computes.
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
from mlx_lm.tuner.lora import LoRALinear

from ..zo.chunks import CHUNK_BYTES
from ..zo.perturb import Direction, Perturbation, StackedView, View
from .chunked_logsumexp import streamed_logsumexp
from .lazy_layers import (
    EagerLayer,
    EmbeddingRows,
    Given,
    Inject,
    LinearRows,
    PassThrough,
    Recorder,
    RemadeLinear,
    StackedLoRA,
    chunks,
    weight_rows,
)
from .slots import Slot, decoder, decoder_layers, parameter_slots, slots_of_kind


@dataclass(frozen=True)
class LayerCalls:
    """What a model passes to its decoder layers for one micro-batch: `embedded` [R, T, D] to the first, then each
    layer's further arguments."""

    embedded: mx.array
    args: list[tuple]
    kwargs: list[dict[str, Any]]


class CausalLM:
    """Hidden states and head scores of a model under a view.

    Args:
        model: an mlx-lm causal model.
        compute_dtype: dtype that weights are cast to while computing; None for native. On the CPU float32 is used,
            because half-precision matrix products there bypass BLAS (60 times slower).
        interrupt: called where a pass can be given up, with the stored weights in place: before each layer of a
            forward pass, and before each micro-batch of a backward pass. It does so by raising.

    Attributes:
        slots: every parameter's place.
        exposes_hidden: hidden states times head agree with the model's own logits, so only supervised positions
            need the head; otherwise full logits are computed.
        hidden_size: width D of the hidden states.
        splits: the stack of layers can be run one layer at a time, over several micro-batches, and cut anywhere.
        plain_calls: layers are passed no floating array but the hidden states, so nothing else that depends on weights.
    """

    def __init__(
        self,
        model: nn.Module,
        compute_dtype: mx.Dtype | None = None,
        interrupt: Callable[[], None] = lambda: None,
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
        self.head_name, self.head = self.embedding_name, self.embedding
        if "lm_head" in owner:
            self.head_name, self.head = f"{path}lm_head", owner["lm_head"]
        self._linears = slots_of_kind(model, nn.Linear, nn.QuantizedLinear)
        self._adapters = slots_of_kind(model, LoRALinear)
        self._layer_names, self._other_names = self._names_by_layer(f"{path}model.layers.")
        # While it is tried, an embedding is read by rows already: as a whole it may be the largest matrix of all.
        self.exposes_hidden, self.splits, self.plain_calls = True, False, False
        self.hidden_size = 0
        self.exposes_hidden, self.splits = self._check()

    def view(self, direction: Direction | None = None, eps: float = 0.0) -> View:
        """Weights at w + eps * z, or without a direction as they are stored, cast to the compute dtype."""
        if direction is None:
            return View(self.compute_dtype)
        return Perturbation(direction, eps, self.compute_dtype)

    @property
    def vocabulary(self) -> int:
        return self.head["weight"].shape[0]

    def hidden(
        self,
        tokens: Sequence[mx.array],
        positions: Sequence[mx.array],
        view: View,
        prefix: Sequence[mx.array] | None = None,
        layers: int = 0,
    ) -> list[mx.array]:
        """Hidden states after the final norm at some positions of several micro-batches.

        Effective weights of a layer are made once for all micro-batches, and are gone before those of the next but
        one are made.

        Args:
            tokens: int32 [R, T] a micro-batch.
            positions: int32 [S] a micro-batch, into the flattened [R * T].
            prefix: what `prefix` gave for the same micro-batches; where that covers all layers, only at `positions`:
                [S, D] each.
            layers: how many layers it covers.

        Returns:
            [S, D] a micro-batch.
        """
        if not self.splits:
            return [at_positions(p, self._whole(t, view)) for t, p in zip(tokens, positions, strict=True)]
        if prefix is not None and layers == len(self.layers):
            states = list(prefix)
        else:
            calls = [self._layer_calls(t, view) for t in tokens]
            hidden = self._through(calls, prefix, view, layers, len(self.layers))
            states = [at_positions(p, h) for p, h in zip(positions, hidden, strict=True)]
        # The final norm goes over positions one by one: those of all micro-batches pass it together.
        ends = np.cumsum([len(s) for s in states])[:-1].tolist()
        return list(mx.split(self.finished(mx.concatenate(states), view), ends))

    def looked_up(self, tokens: mx.array, given: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The rows of the embedding that `tokens` look up, [N, columns] under its name, if it is one of `given`.

        A gradient of these rows is small, and can be added to that of the embedding in place.
        """
        name = f"{self.embedding_name}.weight"
        if name not in given or not self._embeds_by_rows():
            return {}
        return {name: given[name][tokens.reshape(-1)]}

    def layer_calls(
        self, tokens: mx.array, given: Mapping[str, mx.array], looked_up: Mapping[str, mx.array] | None = None
    ) -> LayerCalls:
        """How the model would call its layers on `tokens` [R, T]: the embedded tokens, masks and whatever else it
        passes, as functions of `given` and `looked_up`."""
        return self._layer_calls(tokens, Given(given, self.compute_dtype, looked_up))

    def layer(self, number: int, given: Mapping[str, mx.array], hidden: mx.array, calls: LayerCalls) -> mx.array:
        """Output [R, T, D] of one decoder layer, as a function of `given` and its input; not evaluated."""
        with self._installed(Given(given, self.compute_dtype), self._layer_names[number]):
            return self.layers[number](hidden, *calls.args[number], **calls.kwargs[number])

    def layer_names(self, number: int) -> list[str]:
        """Names of a decoder layer's parameters."""
        return self._layer_names[number]

    def finished(self, states: mx.array, view: View) -> mx.array:
        """Hidden states [S, D] after the final norm, from those after the last layer; not evaluated."""
        skipped = [PassThrough(layer) for layer in self.layers[:-1]]
        replaced = [*skipped, Inject(self.layers[-1], states[None])]
        with self._installed(view, self._other_names), self._layers_replaced(replaced):
            # The token is never looked at: what it would become is put aside by the last layer's stand-in.
            return self.body(mx.zeros((1, 1), mx.int32))[0]

    def prefix(self, tokens: Sequence[mx.array], view: View, layers: int) -> list[mx.array]:
        """The input of layer `layers` of several micro-batches: [R, T, D] each. Later layers are not computed."""
        return self._through([self._layer_calls(t, view) for t in tokens], None, view, 0, layers)

    def _whole(self, tokens: mx.array, view: View) -> mx.array:
        with self._installed(view, self.slots):
            hidden = self.body(tokens)
        # Evaluated with the stored weights back in place: each effective weight goes when its layer is done.
        mx.eval(hidden)
        return hidden

    def _through(
        self, calls: list[LayerCalls], hidden: Sequence[mx.array] | None, view: View, first: int, last: int
    ) -> list[mx.array]:
        """Hidden states before layer `last`, from those before layer `first` (None: the embedded tokens)."""
        hidden = [call.embedded for call in calls] if hidden is None else list(hidden)
        before: list[mx.array] = []
        for number in range(first, last):
            self.interrupt()
            with self._installed(view, self._layer_names[number]):
                layer = self.layers[number]
                hidden = [layer(h, *c.args[number], **c.kwargs[number]) for h, c in zip(hidden, calls, strict=True)]
            # One layer is under way while the next one's graph is made, and of a layer one micro-batch after the other:
            # that bounds what is alive at one time. Evaluated together, all micro-batches would go side by side.
            for states in hidden:
                mx.async_eval(states)
            mx.eval(before)
            before = hidden
        return hidden

    def _by_layer(self, module: nn.Module, tokens: mx.array, view: View, **more: Any) -> mx.array:
        """What the model or its body gives, evaluated a layer at a time: in one graph, MLX would cast or dequantise the
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
        """How the model would call its layers on `tokens`: the embedded tokens, masks and whatever else it passes."""
        recorders = [Recorder(layer) for layer in self.layers]
        with self._installed(view, self._other_names), self._layers_replaced(recorders):
            self.body(tokens)
        return LayerCalls(recorders[0].seen, [r.args for r in recorders], [r.kwargs for r in recorders])

    def _names_by_layer(self, prefix: str) -> tuple[list[list[str]], list[str]]:
        """Parameter names of each decoder layer, and those of everything else."""
        by_layer: list[list[str]] = [[] for _ in self.layers]
        others = []
        for name in self.slots:
            number = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else ""
            (by_layer[int(number)] if number.isdigit() else others).append(name)
        return by_layer, others

    def logits(self, tokens: mx.array, view: View) -> mx.array:
        """The model's own logits for every position: [R, T, V]."""
        with self._installed(view, self.slots):
            return self.model(tokens)

    def read_on(self, tokens: mx.array, caches: Sequence[Any], positions: mx.array, view: View) -> mx.array:
        """States at some positions of tokens int32 [R, T] that follow what lies in the caches, which take them in.

        Args:
            caches: keys and values, one of mlx-lm's caches a layer.
            positions: int32 [S], into the flattened [R * T].

        Returns:
            Float32 hidden states after the final norm [S, D]; logits [S, V] of a model that shows no hidden states.
        """
        self.interrupt()
        if self.exposes_hidden:
            states = self._by_layer(self.body, tokens, view, cache=caches)
        else:
            with self._installed(view, self.slots):
                states = self.model(tokens, cache=caches)
        return at_positions(positions, states).astype(mx.float32)

    def next_logits(self, states: mx.array, view: View) -> mx.array:
        """Logits [S, V] of the tokens that may follow states that `read_on` gave; evaluated."""
        if not self.exposes_hidden:
            logits = states
        elif "scales" not in self.head and not view.changes(f"{self.head_name}.weight", self.head["weight"]):
            weight = self.head["weight"].astype(mx.float32)
            logits = self._with_head_bias(states @ weight.T, mx.arange(len(weight)), view)
        else:
            parts = []
            for chunk in chunks(self.vocabulary, states.shape[-1]):
                parts.append(self._logits(states, chunk, view))
                mx.eval(parts[-1])
            logits = mx.concatenate(parts, axis=-1)
        mx.eval(logits)
        return logits

    def token_logits(self, hidden: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Logits of chosen tokens: float32 [N] for hidden [N, D] and tokens int32 [N], without the other logits."""
        weight = self._head_rows(tokens, view)
        logits = (hidden.astype(mx.float32) * weight.astype(mx.float32)).sum(-1)
        return self._with_head_bias(logits, tokens, view)

    def log_normaliser(self, hidden: mx.array, view: View) -> mx.array:
        """log sum exp over the vocabulary: float32 [N] for hidden [N, D], the head read in chunks of rows.

        Under a `Given` view it is not evaluated.
        """
        hidden = hidden.astype(mx.float32)
        if isinstance(view, Given):
            own = {name: value for name, value in view.given.items() if name.rpartition(".")[0] == self.head_name}
            return streamed_logsumexp(
                lambda states, rows, vectors, chunk: self._logits(states, chunk, Given(vectors, view.dtype, rows)),
                # A chunk's rows are as wide as the hidden states, and its logits as there are positions. MLX makes room
                # for up to ten arrays ahead of what it computes: smaller chunks than where each is evaluated.
                list(chunks(self.vocabulary, 4 * max(hidden.shape))),
                hidden,
                {name: value for name, value in own.items() if value.ndim > 1},
                {name: value for name, value in own.items() if value.ndim == 1},
            )
        parts = []
        for chunk in chunks(self.vocabulary, hidden.shape[-1]):
            parts.append(mx.logsumexp(self._logits(hidden, chunk, view), axis=-1))
            mx.eval(parts[-1])
        return mx.logsumexp(mx.stack(parts), axis=0)

    def _logits(self, hidden: mx.array, chunk: mx.array, view: View) -> mx.array:
        """Logits of the tokens `chunk` [N]: float32 [S, N] for hidden [S, D]."""
        logits = hidden @ self._head_rows(chunk, view).astype(mx.float32).T
        return self._with_head_bias(logits, chunk, view)

    def _with_head_bias(self, logits: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Adds the bias of `tokens` [N] to their logits [..., N], where the head has one."""
        if "bias" not in self.head:
            return logits
        return logits + view.dense(f"{self.head_name}.bias", self.head["bias"])[tokens].astype(mx.float32)

    def _head_rows(self, rows: mx.array, view: View) -> mx.array:
        """Effective rows of the head's weight [N, D]; a quantised head is dequantised row by row."""
        return weight_rows(self.head, self.head_name, rows, view)

    @contextmanager
    def _installed(self, view: View, names: Iterable[str]) -> Iterator[None]:
        """Puts the effective weights of `names` in place while a graph is built; the stored ones are back afterwards.

        A large matrix is not made whole: a stand-in for its layer makes it in chunks of rows while it computes.
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
                linear, adapter = self._linears.get(path), self._adapters.get(path)
                if adapter is not None and isinstance(view, StackedView):
                    put(adapter, StackedLoRA(adapter.get(), path, view))
                    done |= {f"{path}.lora_a", f"{path}.lora_b"}
                elif path == self.embedding_name and leaf == "weight" and self._embeds_by_rows():
                    put(Slot(self.body, "embed_tokens"), EmbeddingRows(self.embedding, path, view))
                elif linear is not None and isinstance(view, Given) and self._remakes(linear.get(), path, view):
                    put(linear, RemadeLinear(linear.get(), path, view))
                    done |= {f"{path}.{leaf}" for leaf in ("weight", "scales", "biases", "bias")}
                elif linear is not None and not isinstance(view, Given) and self._makes_rows(linear.get(), path, view):
                    put(linear, LinearRows(linear.get(), path, view))
                    done |= {f"{path}.{leaf}" for leaf in ("weight", "scales", "biases", "bias")}
                elif view.changes(name, self.slots[name].get()):
                    put(self.slots[name], view.dense(name, self.slots[name].get()))
            yield
        finally:
            for slot, value in reversed(replaced):
                slot.set(value)

    def _embeds_by_rows(self) -> bool:
        return type(self.embedding) is nn.Embedding and self.exposes_hidden

    def _makes_rows(self, linear: nn.Module, path: str, view: View) -> bool:
        """Whether the effective weight of a linear layer is made in chunks of rows."""
        weight = linear["weight"]
        if "scales" in linear:
            # MLX's quantised product on the CPU is some 20 times slower than dequantising and multiplying by BLAS.
            return self.compute_dtype is not None
        return 4 * weight.size > CHUNK_BYTES and view.changes(f"{path}.weight", weight)

    def _remakes(self, linear: nn.Module, path: str, view: Given) -> bool:
        """Whether the effective weight of a linear layer is made twice instead of being kept for the backward pass."""
        if "scales" in linear:
            return self.compute_dtype is not None
        return linear["weight"].dtype != (self.compute_dtype or linear["weight"].dtype)

    @contextmanager
    def _layers_replaced(self, layers: list) -> Iterator[None]:
        kept = list(self.layers)
        self.layers[:] = layers
        try:
            yield
        finally:
            self.layers[:] = kept

    def _check(self) -> tuple[bool, bool]:
        """Tries the two short cuts on a few tokens, rather than trusting a list of architectures."""
        if not self.layers or not isinstance(
            self.head, (nn.Embedding, nn.Linear, nn.QuantizedEmbedding, nn.QuantizedLinear)
        ):
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
                ours = self.token_logits(repeated, chosen, view)
                # The same product in another order: only its rounding may differ.
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


def at_positions(positions: mx.array, hidden: mx.array) -> mx.array:
    """[S, D] from hidden states [R, T, D] and positions [S] in the flattened [R * T]."""
    return hidden.reshape(-1, hidden.shape[-1])[positions]
