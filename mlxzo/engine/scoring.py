"""Candidate scores and losses of batches, from hidden states at the supervised positions only.

Losses are float64, one per example in the order of the batch, so that sums over them have one fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from ..models.causal import CausalLM
from ..models.head import LinearNormaliser
from ..models.lazy_layers import Given
from ..zo.perturb import View
from .activation_cache import ActivationCache, DiskActivationCache
from .batching import Batch, MicroBatch, Shapes
from .encoding import Row
from .frozen_layers import FrozenLayers
from .prefill import Prefill
from .prefix_sharing import reads

# Micro-batches that go through the frozen layers together; the effective weights of a layer are made once for them.
_PARTS_AT_ONCE = 8

Array = TypeVar("Array", np.ndarray, mx.array)

Normalisers = list[LinearNormaliser | None]
"""The normalisers of each micro-batch; None for one that is `shared`."""

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A value per example, lower is better: float64 [B] from candidates' scores [B, C] and targets int [B]."""


class Scorer:
    """Scores batches under a view of the weights; the output of frozen first layers is computed once.

    Args:
        layers: number of first decoder layers that no trainable parameter can change; taken as 0 where the model
            cannot be split there.
        cache: stores the output of those layers for each sequence.
        shapes: bounds of micro-batches, and of the passes through those layers.
    """

    def __init__(
        self,
        causal: CausalLM,
        layers: int = 0,
        cache: ActivationCache | DiskActivationCache | None = None,
        shapes: Shapes | None = None,
    ):
        self.causal = causal
        self.layers = layers if causal.splits else 0
        self.cache = cache
        self.frozen = FrozenLayers(causal, self.layers, shapes or Shapes())
        self._assembled_states: WeakKeyDictionary[Batch, list[mx.array]] = WeakKeyDictionary()

    def prefix(self, batch: Batch) -> list[mx.array] | None:
        """Input of the first trainable layer for each micro-batch, evaluated; None if no layer is frozen.

        Returns:
            For each micro-batch [R, T, D], or [S, D] at the scored positions where every layer is frozen.
        """
        if not self.layers:
            return None
        in_memory = isinstance(self.cache, ActivationCache)
        if in_memory and batch in self._assembled_states:
            return self._assembled_states[batch]
        cached = [None if self.cache is None else self.cache.get(self.frozen.keys(part)) for part in batch.parts]
        missing = [part for part, rows in zip(batch.parts, cached, strict=True) if rows is None]
        # Behind the last layer little is kept of each micro-batch: a large batch need not be in flight as a whole.
        at_once = _PARTS_AT_ONCE if self.frozen.behind else max(1, len(missing))
        groups = (missing[first : first + at_once] for first in range(0, len(missing), at_once))
        computed = (rows for group in groups for rows in self.frozen.compute(group))
        states = []
        for part, rows in zip(batch.parts, cached, strict=True):
            if rows is None:
                rows = next(computed)
                self._keep(part, rows)
            states.append(self._assembled(part, rows))
        mx.eval(states)
        if self.frozen.behind and in_memory:
            # Few states, at the scored positions alone: they stay assembled as long as the batch is in use.
            self._assembled_states[batch] = states
        return states

    def _assembled(self, part: MicroBatch, rows: list[mx.array]) -> mx.array:
        """The hidden states of the sequences as one array, padded with zeros."""
        if self.frozen.behind:
            return mx.concatenate(rows)
        return mx.stack([mx.pad(row, [(0, part.tokens.shape[1] - len(row)), (0, 0)]) for row in rows])

    def _keep(self, part: MicroBatch, rows: Sequence[mx.array]) -> None:
        try:
            if self.cache is not None:
                self.cache.put(self.frozen.keys(part), rows)
        except OSError:
            # The disk is full: the run continues without a cache, slower and bit-identical.
            self.cache = None

    def scores(
        self, batch: Batch, view: View, prefix: Sequence[mx.array] | None = None, near: Normalisers | None = None
    ) -> list[np.ndarray]:
        """Score of every candidate: float64 [B, C] per micro-batch, -inf where an example has fewer candidates.

        The score is the mean log-likelihood of the candidate's tokens. In a `shared` micro-batch every candidate is
        one token at the same position, so all candidates of an example have the same normaliser, which is left out:
        the scores are logits, with the same argmax and softmax over candidates, and the vocabulary is never read.

        Args:
            prefix: the result of `prefix` for this batch, if the view does not change the frozen layers.
            near: the result of `normalisers` for this batch at weights so near that their first order is enough.
        """
        causal = self.causal
        if not causal.exposes_hidden:
            # One micro-batch at a time: full logits are large.
            return [
                _scores(_values_from_logits(causal.logits(mx.array(part.tokens), view), part), part)
                for part in batch.parts
            ]
        parts, states = self._states(batch, view, prefix)
        if near is None:
            some = [hidden for hidden, part in zip(states, parts, strict=True) if not part.shared]
            exact = iter(causal.head.log_normalisers(some, view) if some else ())
            normalisers = [None if part.shared else next(exact) for part in parts]
        else:
            normalisers = [of and of.at(hidden) for of, hidden in zip(near, states, strict=True)]
        grids = [
            _scores(_values_from_hidden(causal, hidden, part, view, normaliser), part)
            for part, hidden, normaliser in zip(parts, states, normalisers, strict=True)
        ]
        if len(grids) == len(batch.parts):
            return grids
        return np.split(grids[0], np.cumsum([len(part.target) for part in batch.parts])[:-1])

    def normalisers(self, batch: Batch, view: View, prefix: Sequence[mx.array] | None = None) -> Normalisers | None:
        """The normalisers of a batch to first order around a view, which saves `scores` at nearby weights the pass over
        the vocabulary; None where no score needs one."""
        if not self.causal.exposes_hidden or all(part.shared for part in batch.parts):
            return None
        parts, states = self._states(batch, view, prefix)
        some = [hidden for hidden, part in zip(states, parts, strict=True) if not part.shared]
        found = iter(self.causal.head.linear_normalisers(some, view))
        return [None if part.shared else next(found) for part in parts]

    def _states(
        self, batch: Batch, view: View, prefix: Sequence[mx.array] | None
    ) -> tuple[Sequence[MicroBatch], list[mx.array]]:
        """The hidden states [S, D] that the head reads, of each micro-batch or of all micro-batches as one."""
        prefix = self.prefix(batch) if prefix is None else prefix
        if self.frozen.behind and batch.joined is not None and prefix is not None:
            # Behind the last layer nothing depends on the micro-batches any more.
            return [batch.joined], [self.causal.finished(mx.concatenate(list(prefix)), view)]
        tokens = [mx.array(part.tokens) for part in batch.parts]
        positions = [mx.array(part.positions) for part in batch.parts]
        return batch.parts, self.causal.hidden(tokens, positions, view, prefix, self.layers)

    def scores_by_reading(self, batch: Batch, view: View, shapes: Shapes) -> list[np.ndarray]:
        """As `scores`, up to float32 rounding, with shared prefixes read once and no cache (see `prefix_sharing`).

        Args:
            shapes: bounds of the tokens of one pass, and of the keys and values held.
        """
        rows = [Row(*row) for part in batch.parts for row in zip(part.rows, part.firsts, strict=True)]
        states = [mx.array(0)] * len(rows)
        prefill = Prefill(self.causal, view)
        for read in reads(rows, shapes):
            some = [rows[number] for number in read.numbers]
            found, _ = prefill.read(read.shared, some)
            *ends, _ = accumulate(len(row.tokens) - row.first_position for row in some)
            own = mx.split(found, ends)
            mx.eval(own)
            for number, of_row in zip(read.numbers, own, strict=True):
                states[number] = of_row
        grids, done = [], 0
        for part in batch.parts:
            hidden = mx.concatenate(states[done : done + len(part.rows)])
            grids.append(_scores(_values_from_hidden(self.causal, hidden, part, view), part))
            done += len(part.rows)
        return grids

    def losses_after_layers(self, part: MicroBatch, given: Mapping[str, mx.array], states: mx.array) -> mx.array:
        """Losses of a micro-batch's examples as a function of some parameters and of the last layer's output.

        Args:
            given: parameters that replace those of the model, by name.
            states: hidden states [S, D] at the scored positions.

        Returns:
            float32 [B], not evaluated.
        """
        causal, view = self.causal, Given(given, self.causal.compute_dtype)
        hidden = causal.finished(states, view)
        return _losses(_values_from_hidden(causal, hidden, part, view), part)

    def losses_from_logits(self, part: MicroBatch, given: Mapping[str, mx.array]) -> mx.array:
        """As `losses_after_layers`, from the logits of all positions, for models that expose no hidden states."""
        logits = self.causal.logits(mx.array(part.tokens), Given(given, self.causal.compute_dtype))
        return _losses(_values_from_logits(logits, part), part)


def by_example(batch: Batch, scores: Sequence[np.ndarray], measure: Measure | None = None) -> np.ndarray:
    """The loss or measure of each example, float64 [B] in the order of the batch, from scores by micro-batch."""
    losses = np.empty(batch.size)
    for part, places, grid in zip(batch.parts, batch.places, scores, strict=True):
        losses[list(places)] = (measure or example_losses)(grid, part.target)
    return losses


def candidate_scores(values: Array, mask: Array, candidate: Array, candidate_mask: Array) -> Array:
    """Score of every candidate, [B, C]: the mean of its tokens' values, -inf where an example has fewer candidates.

    Args:
        values: one per scored token, [K, L].
        mask, candidate, candidate_mask: as in `MicroBatch`.
    """
    xp = _module(values)
    means = (values * mask).sum(-1) / mask.sum(-1)
    return xp.where(candidate_mask, means[candidate], -xp.inf)


def example_losses(scores: Array, target: Array) -> Array:
    """Loss of each example: [B] for scores [B, C] and targets int [B], in the dtype of the scores.

    With several candidates it is the cross-entropy over their scores; with a single one (a completion), its mean
    negative log-likelihood (Malladi et al. 2023, Appendix E.2).
    """
    xp = _module(scores)
    chosen = xp.take_along_axis(scores, target[:, None], axis=1)[:, 0]
    if scores.shape[1] == 1:
        return -chosen
    largest = scores.max(axis=1)
    return xp.log(xp.exp(scores - largest[:, None]).sum(axis=1)) + largest - chosen


def candidate_probabilities(scores: np.ndarray) -> np.ndarray:
    """The share of each candidate, by which the loss is a cross-entropy: float64 [C] from the scores [C]."""
    likelihoods = np.exp(scores - scores.max())
    return likelihoods / likelihoods.sum()


def _module(array: Array) -> Any:
    """The array's module: NumPy for float64 losses, MLX where a gradient is taken."""
    return np if isinstance(array, np.ndarray) else mx


def _scores(values: mx.array, part: MicroBatch) -> np.ndarray:
    """Scores float64 [B, C] from one value per scored token, float32 [K * L]."""
    tokens = np.array(values, np.float64).reshape(part.entry_target.shape)
    return candidate_scores(tokens, part.entry_mask, part.candidate, part.candidate_mask)


def _losses(values: mx.array, part: MicroBatch) -> mx.array:
    """Losses float32 [B] from one value per scored token, as a differentiable graph."""
    arrays = (part.entry_mask, part.candidate, part.candidate_mask, part.target)
    mask, candidate, candidate_mask, target = map(mx.array, arrays)
    return example_losses(candidate_scores(values.reshape(mask.shape), mask, candidate, candidate_mask), target)


def _values_from_hidden(
    causal: CausalLM, hidden: mx.array, part: MicroBatch, view: View, normaliser: mx.array | None = None
) -> mx.array:
    """One value per scored token, float32 [K * L]: its log-likelihood, or in a `shared` micro-batch its logit.

    Args:
        hidden: [S, D], at the scored positions.
        normaliser: their log normaliser [S], if it is known.
    """
    position, (labels, which) = mx.array(part.entry_position.reshape(-1)), part.labels
    if part.shared and len(labels) * len(part.positions) <= len(which):
        # The same few label words everywhere: their rows of the head are read once.
        return causal.head.label_logits(hidden, mx.array(labels), view)[position, mx.array(which)]
    target = mx.array(part.entry_target.reshape(-1))
    values = causal.head.token_logits(hidden[position], target, view)
    if part.shared:
        return values
    return values - (causal.head.log_normaliser(hidden, view) if normaliser is None else normaliser)[position]


def _values_from_logits(logits: mx.array, part: MicroBatch) -> mx.array:
    """As `_values_from_hidden`, from the logits of every position."""
    logits = logits.reshape(-1, logits.shape[-1])[mx.array(part.positions)].astype(mx.float32)
    if not part.shared:
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    position, target = (mx.array(entry.reshape(-1)) for entry in (part.entry_position, part.entry_target))
    return logits[position, target]
