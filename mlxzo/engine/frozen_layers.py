"""The output of frozen first layers, with bits that depend on the sequence alone, so that it can be kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import chain, islice

import mlx.core as mx
import numpy as np

from ..models.causal import CausalLM
from .batching import MicroBatch, Shapes, padded_rows
from .encoding import Row

# Rows that OpenBLAS's kernels for AVX2 compute at a time.
_KERNEL_ROWS = 24


class FrozenLayers:
    """The first decoder layers of a model, which no trainable parameter can change.

    Args:
        layers: their number; 0 for none.
        shapes: where `frozen_tokens` is None, sequences are computed by micro-batch as far as that is found to leave
            their bits as they are; else in the shapes that `Shapes.frozen` gives.
    """

    def __init__(self, causal: CausalLM, layers: int, shapes: Shapes):
        self.causal, self.layers, self.shapes = causal, layers, shapes
        self._invariant: dict[tuple[int, int], bool] = {}

    @property
    def behind(self) -> bool:
        """True if only parameters behind the last layer train, so that positions are independent of one another."""
        return 0 < self.layers == len(self.causal.layers)

    def kept_positions(self, row: Row) -> int:
        """Number of hidden states of a sequence that are needed."""
        return len(row.tokens) - (row.first_position if self.behind else 0)

    def keys(self, part: MicroBatch) -> list[Hashable]:
        """For each sequence, a key of the bits of its hidden states and of the positions needed."""
        length = part.tokens.shape[1] if self.shapes.frozen_tokens is None else None
        return [(tokens, length, first) for tokens, first in zip(part.rows, self.firsts(part), strict=True)]

    def firsts(self, part: MicroBatch) -> tuple[int, ...]:
        """The first position needed of each sequence."""
        return part.firsts if self.behind else (0,) * len(part.rows)

    def compute(self, parts: Sequence[MicroBatch]) -> list[list[mx.array]]:
        """Output of the frozen layers at the needed positions of each sequence, [positions, D], of some micro-batches.

        The result of a sequence is bit-identical whatever else is in the batch, so a cache does not change a run.
        """
        rows = [(part, i) for part in parts for i in range(len(part.rows))]
        if not rows:
            return []
        if self.shapes.frozen_tokens is None:
            states = self._in_parts(parts, rows)
        else:
            states = self._in_fixed_shapes([part.rows[i] for part, i in rows])
            firsts = chain.from_iterable(map(self.firsts, parts))
            ends = (len(part.rows[i]) for part, i in rows)
            states = [state[first:end] for state, first, end in zip(states, firsts, ends, strict=True)]
        of_rows = iter(states)
        return [list(islice(of_rows, len(part.rows))) for part in parts]

    def _in_parts(self, parts: Sequence[MicroBatch], rows: Sequence[tuple[MicroBatch, int]]) -> list[mx.array]:
        """The states [positions, D] of all rows of some micro-batches, which are computed together where that leaves
        their bits as they are."""
        pieces = [self._pieces(part.tokens) for part in parts]
        causal, view = self.causal, self.causal.view()
        tokens = [mx.array(piece) for part in pieces for piece in part]
        hidden = causal.prefix(tokens, view, self._whole_layers)
        states = [state[i : i + 1] for state in hidden for i in range(len(state))]
        if not self.behind:
            return [state[0, : len(part.rows[i])] for state, (part, i) in zip(states, rows, strict=True)]
        # So few positions are computed that the kernels depend on their number: each sequence runs alone.
        positions = [mx.arange(part.firsts[i], len(part.rows[i])) for part, i in rows]
        own = [piece[i : i + 1] for piece in tokens for i in range(len(piece))]
        return causal.after_layers(own, positions, view, states, self._whole_layers)

    def _in_fixed_shapes(self, rows: Sequence[tuple[int, ...]]) -> list[mx.array]:
        """The states of sequences of tokens, padded to [T, D] each, computed in batches of the shapes that
        `Shapes.frozen` gives; padding stands for the sequences that a batch lacks."""
        by_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            by_shape[self.shapes.frozen(len(row))].append(number)
        groups: list[list[int]] = []
        batches: list[mx.array] = []
        for (most, length), numbers in sorted(by_shape.items()):
            count = most if self._is_place_invariant(most, length) else 1
            for first in range(0, len(numbers), count):
                groups.append(numbers[first : first + count])
                batches.append(mx.array(padded_rows([rows[number] for number in groups[-1]], length, count)))
        states = [mx.array(0)] * len(rows)
        for group, hidden in zip(groups, self.causal.prefix(batches, self.causal.view(), self.layers), strict=True):
            for place, number in enumerate(group):
                states[number] = hidden[place]
        return states

    @property
    def _whole_layers(self) -> int:
        """Number of frozen layers whose output is needed at every position."""
        return self.layers - 1 if self.behind else self.layers

    def _pieces(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Sequences [R, T] cut and padded so that the bits of each do not depend on the others."""
        length = tokens.shape[1]
        for padded in (length, -(-length // _KERNEL_ROWS) * _KERNEL_ROWS):
            if self._is_batch_invariant(padded):
                return [np.pad(tokens, [(0, 0), (0, padded - length)])]
        return [row[None] for row in tokens]

    def _is_batch_invariant(self, length: int) -> bool:
        """True if sequences padded to `length` give the same bits alone and in a batch, as measured on two layers.

        Kernels of matrix products are chosen by shape, and compute some rows at a time. The sum of a row usually has
        one order where each sequence begins where a kernel does; where it has not, every sequence runs alone, which
        takes longer.
        """
        if (0, length) not in self._invariant:
            rows = max(2, 512 // length)
            everything = self._trial(rows, length)
            split = [everything[: rows // 2], everything[rows // 2 :]]
            single = [everything[i : i + 1] for i in range(rows)]
            # The single sequences, the longest of the three, are not computed where the halves differ already.
            layers = min(2, self._whole_layers)
            whole = self._trial_states([everything], layers)
            self._invariant[0, length] = all(
                mx.array_equal(whole, self._trial_states(pieces, layers)).item() for pieces in (split, single)
            )
        return self._invariant[0, length]

    def _is_place_invariant(self, rows: int, length: int) -> bool:
        """True if a sequence has the same bits at every place of a batch [rows, length], whatever is at the others, as
        measured on two layers."""
        if rows > 1 and (rows, length) not in self._invariant:
            trial, layers = self._trial(rows, length), min(2, self.layers)
            alone = mx.pad(trial[:1], [(0, rows - 1), (0, 0)])
            whole, turned, first = (self._trial_states([tokens], layers) for tokens in (trial, trial[::-1], alone))
            same = mx.array_equal(whole, turned[::-1]), mx.array_equal(whole[0], first[0])
            self._invariant[rows, length] = all(found.item() for found in same)
        return rows == 1 or self._invariant[rows, length]

    def _trial(self, rows: int, length: int) -> mx.array:
        """Different sequences of tokens, int32 [rows, length]."""
        tokens = np.arange(rows * length, dtype=np.int64) * 7919 % self.causal.vocabulary
        return mx.array(tokens.reshape(rows, length).astype(np.int32))

    def _trial_states(self, pieces: list[mx.array], layers: int) -> mx.array:
        """The states of some sequences, one piece after the other, after the first layers."""
        return mx.concatenate(self.causal.prefix(pieces, self.causal.view(), layers))
