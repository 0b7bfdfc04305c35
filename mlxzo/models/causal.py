"""A causal language model of mlx-lm, seen as embedding, decoder layers and head, with weights read through a view.

A view says what each stored weight looks like during one forward pass: cast to the compute dtype, or perturbed. It
is built lazily and put in place only while the graph is made, so stored weights are never touched and an effective
weight lives only while its layer computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..zo.perturb import View

# Rows of a head are read in chunks of about this many bytes, so that its effective copy stays small.
HEAD_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Slot:
    """Where a parameter or a module lives: `container[key]`, a module or a list inside the model."""

    container: Any
    key: str | int

    def get(self) -> Any:
        return self.container[self.key]

    def set(self, value: Any) -> None:
        self.container[self.key] = value


def parameter_slots(model: nn.Module) -> dict[str, Slot]:
    """The place of every parameter by dotted name, in sorted order."""
    return {name: slot_of(model, name) for name, _ in sorted(tree_flatten(model.parameters()))}


def slot_of(model: nn.Module, name: str) -> Slot:
    """The place of a parameter or module by its dotted name."""
    *parents, leaf = name.split(".")
    container: Any = model
    for part in parents:
        container = container[int(part)] if isinstance(container, list) else container[part]
    return Slot(container, int(leaf) if isinstance(container, list) else leaf)


def decoder(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that holds `model.layers` and the head, with its dotted path: "" or, inside a multimodal
    architecture, "language_model."."""
    inner = getattr(model, "language_model", None)
    return ("language_model.", inner) if isinstance(inner, nn.Module) else ("", model)


class CausalLM:
    """Hidden states and head scores of a model under a view.

    Args:
        model: an mlx-lm causal model.
        compute_dtype: dtype that weights are cast to while computing; None for native. On the CPU float32 is used,
            because half-precision matrix products there bypass BLAS (60 times slower).

    Attributes:
        slots: every parameter's place.
        exposes_hidden: hidden states times head agree with the model's own logits, so only supervised positions
            need the head; otherwise full logits are computed.
        hidden_size: width D of the hidden states.
        splits: the stack of layers can be cut, so that the output of frozen first layers can be shared.
    """

    def __init__(self, model: nn.Module, compute_dtype: mx.Dtype | None = None):
        model.eval()
        self.model = model
        self.compute_dtype = compute_dtype
        self.slots = parameter_slots(model)
        path, owner = decoder(model)
        self.body = getattr(owner, "model", None)
        self.layers: list = getattr(self.body, "layers", None) or []
        self.embedding = self.body.get("embed_tokens") if isinstance(self.body, dict) else None
        self.embedding_name = f"{path}model.embed_tokens"
        tied = "lm_head" not in owner
        self.head_name, self.head = (
            (self.embedding_name, self.embedding) if tied else (f"{path}lm_head", owner["lm_head"])
        )
        # MLX's quantised product on the CPU is some 20 times slower than dequantising first and multiplying by BLAS.
        self.dequantised = [] if compute_dtype is None else _quantised_linears(model)
        self.exposes_hidden = self.splits = False
        self.hidden_size = 0
        self.exposes_hidden, self.splits = self._check()

    def view(self) -> View:
        """The unperturbed view: weights as stored, cast to the compute dtype."""
        return View(self.compute_dtype)

    @property
    def vocabulary(self) -> int:
        return self.head["weight"].shape[0]

    def hidden(self, tokens: mx.array, view: View) -> mx.array:
        """Hidden states after the final norm: [R, T, D] for tokens int32 [R, T]."""
        with self._installed(view):
            return self.body(tokens)

    def prefix(self, tokens: mx.array, view: View, layers: int) -> mx.array:
        """The input of layer `layers`: [R, T, D]. Later layers are not computed."""
        recorder = _Recorder(self.layers[layers])
        replaced = self.layers[:layers] + [recorder] + [_PassThrough(layer) for layer in self.layers[layers + 1 :]]
        with self._installed(view), self._layers_replaced(replaced):
            self.body(tokens)
        return recorder.seen

    def suffix(self, tokens: mx.array, prefix: mx.array, view: View, layers: int) -> mx.array:
        """Hidden states after the final norm, given the output of `prefix` for the same tokens."""
        skipped = [_PassThrough(layer) for layer in self.layers[: layers - 1]]
        replaced = [*skipped, _Inject(self.layers[layers - 1], prefix), *self.layers[layers:]]
        with self._installed(view), self._layers_replaced(replaced):
            return self.body(tokens)

    def logits(self, tokens: mx.array, view: View) -> mx.array:
        """The model's own logits for every position: [R, T, V]."""
        with self._installed(view):
            return self.model(tokens)

    def token_logits(self, hidden: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Logits of chosen tokens: float32 [N] for hidden [N, D] and tokens int32 [N], without the other logits."""
        weight = self._head_rows(tokens, view)
        logits = (hidden.astype(mx.float32) * weight.astype(mx.float32)).sum(-1)
        return self._with_head_bias(logits, tokens, view)

    def log_normaliser(self, hidden: mx.array, view: View) -> mx.array:
        """log sum exp over the vocabulary: float32 [N] for hidden [N, D], the head read in chunks of rows."""
        hidden = hidden.astype(mx.float32)
        rows = max(32, HEAD_CHUNK_BYTES // (4 * hidden.shape[-1]))
        parts = []
        for start in range(0, self.vocabulary, rows):
            chunk = mx.arange(start, min(start + rows, self.vocabulary))
            logits = hidden @ self._head_rows(chunk, view).astype(mx.float32).T
            parts.append(mx.logsumexp(self._with_head_bias(logits, chunk, view), axis=-1))
        return mx.logsumexp(mx.stack(parts), axis=0)

    def _with_head_bias(self, logits: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Adds the bias of `tokens` [N] to their logits [..., N], where the head has one."""
        if "bias" not in self.head:
            return logits
        return logits + view.dense(f"{self.head_name}.bias", self.head["bias"])[tokens].astype(mx.float32)

    def _head_rows(self, rows: mx.array, view: View) -> mx.array:
        """Effective rows of the head's weight [N, D]; a quantised head is dequantised row by row."""
        name = f"{self.head_name}.weight"
        if "scales" not in self.head:
            return view.rows(name, self.head["weight"], rows)
        scales = view.rows(f"{self.head_name}.scales", self.head["scales"], rows)
        biases = self.head.get("biases")
        if biases is not None:
            biases = view.rows(f"{self.head_name}.biases", biases, rows)
        return _dequantise(self.head, self.head["weight"][rows], scales, biases)

    @contextmanager
    def _installed(self, view: View) -> Iterator[None]:
        """Puts the effective weights in place while a graph is built; the stored ones are back afterwards."""
        float_embedding = type(self.embedding) is nn.Embedding
        by_rows = {f"{self.embedding_name}.weight"} if float_embedding and self.exposes_hidden else set()
        changed = []
        try:
            for name, slot in self.slots.items():
                weight = slot.get()
                if name not in by_rows and view.changes(name, weight):
                    changed.append((slot, weight))
                    slot.set(view.dense(name, weight))
            for slot, linear in self.dequantised:
                slot.set(_Dequantised(linear))
            if by_rows:
                self.body["embed_tokens"] = _EmbeddingRows(self.embedding, f"{self.embedding_name}.weight", view)
            yield
        finally:
            for slot, weight in changed:
                slot.set(weight)
            for slot, linear in self.dequantised:
                slot.set(linear)
            if by_rows:
                self.body["embed_tokens"] = self.embedding

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
        full = self.logits(tokens, view)[0].astype(mx.float32)
        try:
            hidden = self.hidden(tokens, view)[0]
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
        try:
            cut = len(self.layers) // 2
            if cut == 0:
                return True, False
            joined = self.suffix(tokens, self.prefix(tokens, view, cut), view, cut)[0]
            return True, bool(mx.array_equal(joined, hidden).item())
        except (TypeError, ValueError, AttributeError, KeyError):
            return True, False


class _EmbeddingRows(nn.Module):
    """Stands in for an embedding during a forward pass: only the rows looked up are made effective."""

    def __init__(self, embedding: nn.Embedding, name: str, view: View):
        super().__init__()
        self._embedding, self._name, self._view = embedding, name, view

    def __call__(self, tokens: mx.array) -> mx.array:
        weight = self._embedding["weight"]
        rows = self._view.rows(self._name, weight, tokens.reshape(-1))
        return rows.reshape(*tokens.shape, weight.shape[-1])

    def as_linear(self, hidden: mx.array) -> mx.array:
        return hidden @ self._view.dense(self._name, self._embedding["weight"]).T


class _Dequantised(nn.Module):
    """Stands in for a quantised linear layer: its weight is made whole while it computes."""

    def __init__(self, linear: nn.QuantizedLinear):
        super().__init__()
        self._linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        linear = self._linear
        y = x @ _dequantise(linear, linear["weight"], linear["scales"], linear.get("biases")).astype(x.dtype).T
        return y + linear["bias"] if "bias" in linear else y


def _dequantise(module: nn.Module, weight: mx.array, scales: mx.array, biases: mx.array | None) -> mx.array:
    """The weight that packed integers of a quantised module stand for, or some of its rows."""
    mode = getattr(module, "mode", "affine")
    return mx.dequantize(weight, scales, biases, group_size=module.group_size, bits=module.bits, mode=mode)


def _quantised_linears(model: nn.Module) -> list[tuple[Slot, nn.QuantizedLinear]]:
    return [
        (slot_of(model, name), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    ]


class _StandIn:
    """Takes the place of a decoder layer and answers for its attributes (some models read them)."""

    def __init__(self, layer: Any):
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class _PassThrough(_StandIn):
    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden


class _Recorder(_StandIn):
    seen: mx.array

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        self.seen = hidden
        return hidden


class _Inject(_StandIn):
    def __init__(self, layer: Any, value: mx.array):
        super().__init__(layer)
        self._value = value

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return self._value
