"""The output head of a language model, read by rows: no effective copy of its whole matrix is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..zo.perturb import View
from .chunked_logsumexp import streamed_logsumexp
from .lazy_layers import Given, chunks, weight_rows


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to each logit x last: scale x, or with a cap cap tanh(scale x / cap)."""

    scale: float = 1.0
    cap: float | None = None

    @staticmethod
    def of(model: nn.Module) -> LogitTransform:
        """The transform that the attributes of an mlx-lm model, or of its configuration, name."""

        def named(*names: str) -> float | None:
            places = (model, getattr(model, "args", None))
            return next((value for place in places for name in names if (value := getattr(place, name, None))), None)

        # Granite divides, Cohere multiplies; Gemma caps.
        scale = 1.0 / (named("logits_scaling") or 1.0) * (named("logit_scale") or 1.0)
        return LogitTransform(scale, named("final_logit_softcapping", "logits_soft_cap"))

    def __call__(self, logits: mx.array) -> mx.array:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else mx.tanh(logits / self.cap) * self.cap


class Head:
    """The projection from hidden states to logits.

    Args:
        module: a linear layer, or the embedding where the head is tied; quantised or not.
        name: its dotted path.
        transform: applied to every logit.
    """

    def __init__(self, module: Any, name: str, transform: LogitTransform | None = None):
        self.module, self.name, self.transform = module, name, transform or LogitTransform()

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.module["weight"].shape[0]

    def token_logits(self, hidden: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Logits of chosen tokens: float32 [N] for hidden [N, D] and tokens int32 [N], without the other logits."""
        weight = weight_rows(self.module, self.name, tokens, view)
        logits = (hidden.astype(mx.float32) * weight.astype(mx.float32)).sum(-1)
        return self._finished(logits, tokens, view)

    def label_logits(self, hidden: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Logits of a few tokens at every position: float32 [S, N] for hidden [S, D] and tokens int32 [N].

        They have the bits that `token_logits` gives, whatever the other positions and tokens are.
        """
        states, weight = hidden.astype(mx.float32), weight_rows(self.module, self.name, tokens, view).astype(mx.float32)
        columns = [(states * row).sum(-1) for row in weight]
        return self._finished(mx.stack(columns, axis=-1), tokens, view)

    def logits(self, hidden: mx.array, view: View) -> mx.array:
        """Logits of all tokens: float32 [S, V] for float32 hidden [S, D]."""
        weight = self.module["weight"]
        if "scales" not in self.module and not view.changes(f"{self.name}.weight", weight):
            return self._finished(hidden @ weight.astype(mx.float32).T, mx.arange(len(weight)), view)
        parts = []
        for chunk in chunks(self.vocabulary, hidden.shape[-1]):
            parts.append(self._logits(hidden, chunk, view))
            mx.eval(parts[-1])
        return mx.concatenate(parts, axis=-1)

    def log_normaliser(self, hidden: mx.array, view: View) -> mx.array:
        """log sum exp over the vocabulary: float32 [N] for hidden [N, D], the head read in chunks of rows.

        Under a `Given` view it is not evaluated.
        """
        hidden = hidden.astype(mx.float32)
        if isinstance(view, Given):
            own = {name: value for name, value in view.given.items() if name.rpartition(".")[0] == self.name}
            return streamed_logsumexp(
                lambda states, rows, vectors, chunk: self._logits(states, chunk, Given(vectors, view.dtype, rows)),
                # A chunk has as many columns as the hidden states, and its logits as many as there are positions. MLX
                # allocates up to ten arrays ahead of what it computes, so chunks are smaller than where each is
                # evaluated.
                list(chunks(self.vocabulary, 4 * max(hidden.shape))),
                hidden,
                {name: value for name, value in own.items() if value.ndim > 1},
                {name: value for name, value in own.items() if value.ndim == 1},
            )
        return self.log_normalisers([hidden], view)[0]

    def log_normalisers(self, states: Sequence[mx.array], view: View) -> list[mx.array]:
        """As `log_normaliser` of several arrays of hidden states, with the effective head made once for all of them."""
        parts: list[list[mx.array]] = [[] for _ in states]
        for chunk in chunks(self.vocabulary, states[0].shape[-1]):
            columns = weight_rows(self.module, self.name, chunk, view).astype(mx.float32).T
            for hidden, own in zip(states, parts, strict=True):
                logits = self._finished(hidden.astype(mx.float32) @ columns, chunk, view)
                own.append(mx.logsumexp(logits, axis=-1))
                mx.eval(own[-1])
        return [mx.logsumexp(mx.stack(own), axis=0) for own in parts]

    def _logits(self, hidden: mx.array, chunk: mx.array, view: View) -> mx.array:
        """Logits of the tokens `chunk` [N]: float32 [S, N] for float32 hidden [S, D]."""
        logits = hidden @ weight_rows(self.module, self.name, chunk, view).astype(mx.float32).T
        return self._finished(logits, chunk, view)

    def _finished(self, products: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Logits of `tokens` [N], from the products [..., N] of hidden states with their rows of the head."""
        if "bias" in self.module:
            products = products + view.dense(f"{self.name}.bias", self.module["bias"])[tokens].astype(mx.float32)
        return self.transform(products)
