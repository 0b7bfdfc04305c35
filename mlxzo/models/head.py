"""The output head of a language model, read by rows: no effective copy of its whole matrix is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..core.blas import SIDE_BY_SIDE
from ..zo.perturb import View
from .chunked_logsumexp import streamed_logsumexp
from .lazy_layers import Given, chunks, weight_rows
from .streams import side_by_side


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

    def slope(self, transformed: mx.array) -> mx.array | float:
        """The derivative at transformed logits."""
        return self.scale if self.cap is None else self.scale * (1.0 - (transformed / self.cap) ** 2)


@dataclass(frozen=True)
class LinearNormaliser:
    """The log normaliser near some hidden states, to first order: its derivative there is the expected head row.

    Attributes:
        hidden: the states, float32 [S, D].
        value: log sum exp of their logits, float32 [S].
        slope: the rows of the head, averaged by the probabilities of their tokens, float32 [S, D].
    """

    hidden: mx.array
    value: mx.array
    slope: mx.array

    def at(self, hidden: mx.array) -> mx.array:
        """The log normaliser of states [S, D] near `hidden`: float32 [S], with an error of second order."""
        return self.value + ((hidden.astype(mx.float32) - self.hidden) * self.slope).sum(-1)


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

    @property
    def width(self) -> int:
        """Width D of the hidden states."""
        weight = self.module["weight"]
        return (
            weight.shape[1] if "scales" not in self.module else self.module["scales"].shape[1] * self.module.group_size
        )

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
        states = [hidden.astype(mx.float32) for hidden in states]
        parts: list[list[mx.array]] = [[] for _ in states]

        def add(chunk: mx.array, rows: mx.array) -> list[mx.array]:
            for hidden, own in zip(states, parts, strict=True):
                own.append(_log_sum(self._finished(hidden @ rows.T, chunk, view))[0])
            return [own[-1] for own in parts]

        self._each_chunk(add, view)
        return [mx.logsumexp(mx.stack(own), axis=0) for own in parts]

    def linear_normalisers(self, states: Sequence[mx.array], view: View) -> list[LinearNormaliser]:
        """As `log_normalisers`, with the derivative by the hidden states, in one pass over the head.

        With it the normaliser of any number of nearby states costs no pass over the vocabulary.
        """
        states = [hidden.astype(mx.float32) for hidden in states]
        parts: list[list[mx.array]] = [[] for _ in states]
        sums = [mx.full(len(hidden), -mx.inf) for hidden in states]
        slopes = [mx.zeros_like(hidden) for hidden in states]

        def add(chunk: mx.array, rows: mx.array) -> list[mx.array]:
            for i, hidden in enumerate(states):
                logits = self._finished(hidden @ rows.T, chunk, view)
                value, weights, top = _log_sum(logits)
                so_far = mx.logaddexp(sums[i], value)
                added = (weights * self.transform.slope(logits)) @ rows
                # Each chunk counts by its share of the sum.
                slopes[i] = mx.exp(sums[i] - so_far)[:, None] * slopes[i] + mx.exp(top - so_far)[:, None] * added
                parts[i].append(value)
                sums[i] = so_far
            return [*(own[-1] for own in parts), *sums, *slopes]

        self._each_chunk(add, view)
        values = [mx.logsumexp(mx.stack(own), axis=0) for own in parts]
        return [LinearNormaliser(*found) for found in zip(states, values, slopes, strict=True)]

    def _each_chunk(self, add: Callable[[mx.array, mx.array], list[mx.array]], view: View) -> None:
        """Calls `add` with chunks of tokens [N] and their effective rows [N, D] in float32, and evaluates what it
        returns, one chunk while the next is computed."""
        before: list[mx.array] = []
        with side_by_side() as streams:
            # All chunks in flight together have the size of one.
            for chunk, stream in zip(chunks(self.vocabulary, SIDE_BY_SIDE * self.width), cycle(streams), strict=False):
                with mx.stream(stream):
                    found = add(chunk, weight_rows(self.module, self.name, chunk, view).astype(mx.float32))
                mx.async_eval(*found)
                mx.eval(before)
                before = found
            mx.eval(before)

    def _logits(self, hidden: mx.array, chunk: mx.array, view: View) -> mx.array:
        """Logits of the tokens `chunk` [N]: float32 [S, N] for float32 hidden [S, D]."""
        logits = hidden @ weight_rows(self.module, self.name, chunk, view).astype(mx.float32).T
        return self._finished(logits, chunk, view)

    def _finished(self, products: mx.array, tokens: mx.array, view: View) -> mx.array:
        """Logits of `tokens` [N], from the products [..., N] of hidden states with their rows of the head."""
        if "bias" in self.module:
            products = products + view.dense(f"{self.name}.bias", self.module["bias"])[tokens].astype(mx.float32)
        return self.transform(products)


def _log_sum(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """log sum exp [S] of logits [S, N], with exp(logits - top) [S, N] and their largest, top [S]."""
    top = logits.max(axis=-1)
    weights = mx.exp(logits - top[:, None])
    return mx.log(weights.sum(axis=-1)) + top, weights, top
