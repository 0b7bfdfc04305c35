"""Candidate scores and losses of batches, from hidden states at the supervised positions only.

Losses come out an example at a time, in float64 and in the order of the batch, so that whatever is made of them is
summed in one fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..models.causal import CausalLM, at_positions
from ..models.lazy_layers import Given
from ..zo.perturb import StackedView, View
from .activation_cache import ActivationCache
from .batching import Batch, MicroBatch, Shapes
from .encoding import Row
from .prefill import Prefill
from .prefix_sharing import reads

Array = TypeVar("Array", np.ndarray, mx.array)


class Scorer:
    """Scores batches under a view of the weights; what frozen first layers give is computed once.

    Args:
        layers: how many of the first decoder layers no trainable parameter can change; 0 where there are none, or
            where the model cannot be cut there.
        cache: keeps the output of those layers for every sequence that it was once computed for.
    """

    def __init__(self, causal: CausalLM, layers: int = 0, cache: ActivationCache | None = None):
        self.causal = causal
        self.layers = layers if causal.splits else 0
        self.cache = cache
        self._harmless: dict[int, bool] = {}

    def prefix(self, batch: Batch) -> list[mx.array] | None:
        """Input of the first trainable layer for each micro-batch, evaluated; None if nothing is frozen.

        Returns:
            [R, T, D] a micro-batch; where every layer is frozen, only scored positions matter: [S, D].
        """
        if not self.layers:
            return None
        kept = [self.cache and self.cache.get(self._keys(part)) for part in batch.parts]
        missing = [i for i, rows in enumerate(kept) if rows is None]
        computed = self._compute([batch.parts[i] for i in missing])
        for i, hidden in zip(missing, computed, strict=True):
            kept[i] = self._needed(batch.parts[i], hidden)
            self._keep(batch.parts[i], kept[i])
        states = [self._assembled(part, rows) for part, rows in zip(batch.parts, kept, strict=True)]
        mx.eval(states)
        return states

    def kept_positions(self, row: Row) -> int:
        """How many hidden states of a sequence `prefix` needs."""
        return len(row.tokens) - (row.first_position if self._behind else 0)

    @property
    def _behind(self) -> bool:
        """Whether all that trains lies behind the last layer, so that nothing looks from one position to another."""
        return self.layers == len(self.causal.layers)

    def _keys(self, part: MicroBatch) -> list[Hashable]:
        """What decides the bits of each sequence's hidden states, and which of them are needed."""
        firsts = part.firsts if self._behind else (0,) * len(part.rows)
        return [(tokens, part.tokens.shape[1], first) for tokens, first in zip(part.rows, firsts, strict=True)]

    def _needed(self, part: MicroBatch, hidden: mx.array) -> list[mx.array]:
        """Of hidden [R, T, D] what each sequence needs, [positions, D]: no padding, which no scored position sees."""
        firsts = part.firsts if self._behind else (0,) * len(part.rows)
        return [hidden[i, first : len(tokens)] for i, (tokens, first) in enumerate(zip(part.rows, firsts, strict=True))]

    def _assembled(self, part: MicroBatch, rows: Sequence[mx.array]) -> mx.array:
        """The sequences' hidden states as one array, with zeros for the padding."""
        if self._behind:
            return mx.concatenate(rows)
        return mx.stack([mx.pad(row, ((0, part.tokens.shape[1] - len(row)), (0, 0))) for row in rows])

    def _keep(self, part: MicroBatch, rows: Sequence[mx.array]) -> None:
        try:
            if self.cache is not None:
                self.cache.put(self._keys(part), rows)
        except OSError:
            # A disk that has become full: the run goes on without a cache, slower and the same to the bit.
            self.cache = None

    def scores(self, batch: Batch, view: View, prefix: Sequence[mx.array] | None = None) -> list[np.ndarray]:
        """Score of every candidate: float64 [B, C] a micro-batch, -inf where an example has fewer candidates.

        The score is the mean log-likelihood of the candidate's tokens. In a `shared` micro-batch every candidate is
        one token at the same position, so the normaliser is the same for all candidates of an example and is left
        out: the scores then are logits, with the same argmax and the same softmax over candidates, and the
        vocabulary is never read.

        Args:
            prefix: what `prefix` gives for this batch, where the view leaves the frozen layers alone.
        """
        causal = self.causal
        tokens = [mx.array(part.tokens) for part in batch.parts]
        if not causal.exposes_hidden:
            # One micro-batch after the other: full logits are large.
            return [
                _scores(_values_from_logits(causal.logits(t, view), part), part)
                for t, part in zip(tokens, batch.parts, strict=True)
            ]
        prefix = self.prefix(batch) if prefix is None else prefix
        positions = [mx.array(part.positions) for part in batch.parts]
        hidden = causal.hidden(tokens, positions, view, prefix, self.layers)
        return [
            _scores(_values_from_hidden(causal, h, part, view), part)
            for h, part in zip(hidden, batch.parts, strict=True)
        ]

    def scores_by_reading(self, batch: Batch, view: View, shapes: Shapes) -> list[np.ndarray]:
        """The same to the rounding of float32, what rows begin with in common read once (see `prompt_reads`) and no
        frozen layer's output kept.

        Args:
            shapes: bounds of what is read in one pass, and of the keys and values that are held.
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

    def losses(
        self,
        batch: Batch,
        view: View,
        prefix: Sequence[mx.array] | None = None,
        measure: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Loss of each example: float64 [B].

        Args:
            measure: makes something else of scores and targets (see `objectives`).
        """
        losses = np.empty(batch.size)
        scores = self.scores(batch, view, prefix)
        for part, places, grid in zip(batch.parts, batch.places, scores, strict=True):
            losses[list(places)] = (measure or example_losses)(grid, part.target)
        return losses

    def losses_after_layers(self, part: MicroBatch, given: Mapping[str, mx.array], states: mx.array) -> mx.array:
        """Losses of a micro-batch's examples as a function of parameters `given` and of the last layer's output:
        float32 [B], not evaluated.

        Args:
            states: hidden states [R, T, D], or where every layer is frozen [S, D], as `prefix` gives them.
        """
        causal, view = self.causal, Given(given, self.causal.compute_dtype)
        scored = states if self._behind else at_positions(mx.array(part.positions), states)
        hidden = causal.finished(scored, view)
        return _losses(_values_from_hidden(causal, hidden, part, view), part)

    def losses_from_logits(self, part: MicroBatch, given: Mapping[str, mx.array]) -> mx.array:
        """The same from the model's own logits of all positions, where it shows no hidden states."""
        logits = self.causal.logits(mx.array(part.tokens), Given(given, self.causal.compute_dtype))
        return _losses(_values_from_logits(logits, part), part)

    def stacked_losses(
        self,
        batch: Batch,
        views: Sequence[View],
        prefix: Sequence[mx.array] | None = None,
        measure: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """What `losses` gives under several views that differ in LoRA adapters alone, in one pass: float64 [B] a view.

        The weights that all views share then meet one matrix product of all views' tokens. Activations take as many
        times more memory as there are views.
        """
        causal, count = self.causal, len(views)
        tokens = [mx.tile(mx.array(part.tokens), (count, 1)) for part in batch.parts]
        prefix = self.prefix(batch) if prefix is None else prefix
        copies = prefix and [mx.tile(states, (count, 1, 1)) for states in prefix]
        positions = [
            mx.concatenate([mx.array(part.positions) + copy * part.tokens.size for copy in range(count)])
            for part in batch.parts
        ]
        hidden = causal.hidden(tokens, positions, StackedView(views), copies, self.layers)
        losses = [np.empty(batch.size) for _ in views]
        for part, places, states in zip(batch.parts, batch.places, hidden, strict=True):
            for side, own in zip(losses, mx.split(states, count), strict=True):
                # The head is no adapter: any view reads it as it is.
                values = _values_from_hidden(causal, own, part, causal.view())
                side[list(places)] = (measure or example_losses)(_scores(values, part), part.target)
        return losses

    def _compute(self, parts: Sequence[MicroBatch]) -> list[mx.array]:
        """The frozen layers' output for some micro-batches, the same to the bit in whatever company a sequence comes,
        so that a run with a cache is the run without."""
        if not parts:
            return []
        pieces = [
            [part.tokens] if self._company_is_harmless(part.tokens.shape[1]) else [row[None] for row in part.tokens]
            for part in parts
        ]
        tokens = [mx.array(piece) for part in pieces for piece in part]
        hidden = iter(self.causal.prefix(tokens, self.causal.view(), self.layers))
        return [mx.concatenate([next(hidden) for _ in part]) for part in pieces]

    def _company_is_harmless(self, length: int) -> bool:
        """Whether a sequence padded to `length` gives the same bits alone and among others, tried on two layers.

        Matrix products choose their kernels by shape. Large ones usually add up in one order however many rows they
        have, small ones do not; then every sequence runs alone, which takes longer.
        """
        if length not in self._harmless:
            rows = max(2, 512 // length)
            tokens = (np.arange(rows * length, dtype=np.int64) * 7919 % self.causal.vocabulary).reshape(rows, length)
            everything = mx.array(tokens.astype(np.int32))
            split = [everything[: rows // 2], everything[rows // 2 :]]
            alone = [everything[i : i + 1] for i in range(rows)]
            layers, view = min(2, self.layers), self.causal.view()
            together, *others = (
                mx.concatenate(self.causal.prefix(pieces, view, layers)) for pieces in ([everything], split, alone)
            )
            self._harmless[length] = all(mx.array_equal(together, other).item() for other in others)
        return self._harmless[length]


def candidate_scores(values: Array, mask: Array, candidate: Array, candidate_mask: Array) -> Array:
    """Score of every candidate, [B, C]: the mean of its tokens' values, -inf where an example has fewer candidates.

    Args:
        values: [K, L] a value a scored token. mask, candidate, candidate_mask: as in `MicroBatch`.
    """
    xp = _module(values)
    means = (values * mask).sum(-1) / mask.sum(-1)
    return xp.where(candidate_mask, means[candidate], -xp.inf)


def example_losses(scores: Array, target: Array) -> Array:
    """Loss of each example: [B] for scores [B, C] and targets int [B], in the dtype of the scores.

    With several candidates it is the cross-entropy over their scores; with a single one (a completion) it is that
    candidate's mean negative log-likelihood (Malladi et al. 2023, Appendix E.2).
    """
    xp = _module(scores)
    chosen = xp.take_along_axis(scores, target[:, None], axis=1)[:, 0]
    if scores.shape[1] == 1:
        return -chosen
    largest = scores.max(axis=1)
    return xp.log(xp.exp(scores - largest[:, None]).sum(axis=1)) + largest - chosen


def _module(array: Array) -> Any:
    """The module whose functions suit an array: float64 in NumPy for losses, MLX where a gradient is taken."""
    return np if isinstance(array, np.ndarray) else mx


def _scores(values: mx.array, part: MicroBatch) -> np.ndarray:
    """float64 [B, C] from one value a scored token, float32 [K * L]."""
    tokens = np.array(values, np.float64).reshape(part.entry_target.shape)
    return candidate_scores(tokens, part.entry_mask, part.candidate, part.candidate_mask)


def _losses(values: mx.array, part: MicroBatch) -> mx.array:
    """float32 [B] from the same, as a graph that a gradient can be taken of."""
    arrays = (part.entry_mask, part.candidate, part.candidate_mask, part.target)
    mask, candidate, candidate_mask, target = map(mx.array, arrays)
    return example_losses(candidate_scores(values.reshape(mask.shape), mask, candidate, candidate_mask), target)


def _values_from_hidden(causal: CausalLM, hidden: mx.array, part: MicroBatch, view: View) -> mx.array:
    """A value a scored token, float32 [K * L]: its log-likelihood, or in a `shared` micro-batch its logit.

    Args:
        hidden: [S, D], at the scored positions.
    """
    position, target = (mx.array(entry.reshape(-1)) for entry in (part.entry_position, part.entry_target))
    values = causal.token_logits(hidden[position], target, view)
    return values if part.shared else values - causal.log_normaliser(hidden, view)[position]


def _values_from_logits(logits: mx.array, part: MicroBatch) -> mx.array:
    """The same from the logits of every position."""
    logits = logits.reshape(-1, logits.shape[-1])[mx.array(part.positions)].astype(mx.float32)
    if not part.shared:
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    position, target = (mx.array(entry.reshape(-1)) for entry in (part.entry_position, part.entry_target))
    return logits[position, target]
