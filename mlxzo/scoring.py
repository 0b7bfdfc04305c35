"""Candidate scores and the training loss of a batch, from hidden states at the supervised positions only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import mlx.core as mx

from .batching import Batch
from .models.causal import CausalLM
from .zo.perturb import View
from .zo.prefix_cache import PrefixCache


class Prefix:
    """The frozen first layers of a model: their hidden states for a batch, from the cache where it has them.

    Args:
        layers: how many of the first decoder layers no trainable parameter can change; 0 where there are none, or
            where the model cannot be cut there.
    """

    def __init__(self, causal: CausalLM, layers: int):
        self.causal = causal
        self.layers = layers if causal.splits else 0
        self.cache = PrefixCache()

    def fill(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Caches the hidden states of every batch; yields the number of rows done so far."""
        done = 0
        for batch in batches:
            self.cache.put(batch.rows, self._compute(batch))
            done += len(batch.rows)
            yield done

    def hidden(self, batch: Batch) -> mx.array | None:
        """Input of the first trainable layer, [R, T, D], evaluated; None where nothing is frozen."""
        if not self.layers:
            return None
        if all(row in self.cache for row in batch.rows):
            return self.cache.get(batch.rows, batch.tokens.shape[1])
        hidden = self._compute(batch)
        mx.eval(hidden)
        return hidden

    def _compute(self, batch: Batch) -> mx.array:
        return self.causal.prefix(mx.array(batch.tokens), self.causal.view(), self.layers)


def candidate_scores(
    causal: CausalLM, batch: Batch, view: View, prefix: mx.array | None = None, layers: int = 0
) -> mx.array:
    """Score of every candidate: float32 [B, C], -inf where an example has fewer candidates.

    The score is the mean log-likelihood of the candidate's tokens. In a `shared` batch every candidate is one token
    at the same position, so the normaliser is the same for all candidates of an example and is left out: the scores
    then are logits, with the same argmax and the same softmax over candidates, and the vocabulary is never read.

    Args:
        prefix: what `Prefix.hidden` gives for this batch.
        layers: how many layers it covers.
    """
    tokens = mx.array(batch.tokens)
    positions = mx.array(batch.positions)
    entry_position, entry_target = mx.array(batch.entry_position), mx.array(batch.entry_target)
    flat_position, flat_target = entry_position.reshape(-1), entry_target.reshape(-1)
    if causal.exposes_hidden:
        if prefix is None:
            hidden = causal.hidden(tokens, view)
        else:
            hidden = causal.suffix(tokens, prefix, view, layers)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        values = causal.token_logits(hidden[flat_position], flat_target, view)
        normaliser = None if batch.shared else causal.log_normaliser(hidden, view)
    else:
        logits = causal.logits(tokens, view)
        logits = logits.reshape(-1, logits.shape[-1])[positions].astype(mx.float32)
        values = logits[flat_position, flat_target]
        normaliser = None if batch.shared else mx.logsumexp(logits, axis=-1)
    if normaliser is not None:
        values = values - normaliser[flat_position]
    mask = mx.array(batch.entry_mask)
    scores = (values.reshape(entry_target.shape) * mask).sum(-1) / mask.sum(-1)
    grid = scores[mx.array(batch.candidate)]
    return mx.where(mx.array(batch.candidate_mask), grid, -mx.inf)


def example_losses(scores: mx.array, target: mx.array) -> mx.array:
    """Loss of each example: float32 [B].

    With several candidates it is the cross-entropy over their scores; with a single one (a completion) it is that
    candidate's mean negative log-likelihood (Malladi et al. 2023, Appendix E.2).
    """
    chosen = mx.take_along_axis(scores, target[:, None], axis=1)[:, 0]
    if scores.shape[1] == 1:
        return -chosen
    return mx.logsumexp(scores, axis=1) - chosen


def batch_loss(causal: CausalLM, batch: Batch, view: View, prefix: mx.array | None = None, layers: int = 0) -> mx.array:
    """Mean loss of a batch, a float32 scalar."""
    scores = candidate_scores(causal, batch, view, prefix, layers)
    return example_losses(scores, mx.array(batch.target)).mean()
