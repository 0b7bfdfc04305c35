"""Padded micro-batches of encoded examples, and a stateless data order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise, takewhile
from typing import Protocol

import numpy as np

from ..tasks.sampling import stable_permutation
from .encoding import EncodedExample

# Rows that an evaluation scores between two progress events.
SCORED_AT_ONCE = 32


class Size(Protocol):
    """The size of an example, which decides micro-batches and their memory: an `EncodedExample` is one.

    Attributes:
        length: tokens of its longest row.
        row_count: sequences that the model reads for it.
        candidates: answers to choose from.
        scored: number of scored positions, in all rows.
        shared: all candidates are scored at one position.
        written: an evaluation generates an answer.
    """

    @property
    def length(self) -> int: ...
    @property
    def row_count(self) -> int: ...
    @property
    def candidates(self) -> int: ...
    @property
    def scored(self) -> int: ...
    @property
    def shared(self) -> bool: ...
    @property
    def written(self) -> bool: ...


@dataclass(frozen=True)
class Shapes:
    """Bounds of micro-batches, each of which is one forward pass.

    Every example is padded to the next multiple of `multiple`, and only examples of one padded length share a
    micro-batch, so little is computed for padding.

    Attributes:
        multiple: lengths are padded up to a multiple of this: few distinct shapes keep the allocator's cache small.
        tokens: most tokens in a micro-batch, padding included (one example may be longer).
        rows: most sequences in a micro-batch (an example with more candidates still stays whole); None for no limit.
        written_share: bound of the tokens, and of the sequences, of answers in flight, in multiples of a micro-batch's.
        frozen_tokens: most tokens in one pass through frozen layers, whose shape depends on the length of a sequence
            alone (see `frozen`; one sequence may be longer); None: the passes are those of the micro-batches.
        population: factor of that bound of tokens where a population writes in one batch.
    """

    multiple: int = 8
    tokens: int = 256
    rows: int | None = None
    written_share: int = 8
    frozen_tokens: int | None = None
    population: int = 1

    @staticmethod
    def suited(on_cpu: bool, rows: int | None = None, population: bool = False) -> Shapes:
        """Shapes for a device. On a CPU, 256 tokens keep the matrix products busy and fit its caches, and two
        micro-batches are computed at once; a GPU wants fewer and larger ones. A decode step reads every weight whatever
        the batch size; it pays from about 16 sequences, and a population has some hundred.

        Args:
            population: a population writes in one batch.
        """
        if on_cpu:
            return Shapes(8, 256, rows, 16, population=4 if population else 1)
        return Shapes(32, 8192, rows, 1, 512, population=2 if population else 1)

    def padded(self, example: Size) -> int:
        """The padded length of an example, in tokens."""
        return -(-example.length // self.multiple) * self.multiple

    def most_rows(self, length: int) -> int:
        """Most sequences of a padded length in one micro-batch."""
        return max(1, min(self.tokens // length, self.rows or self.tokens))

    def frozen(self, length: int) -> tuple[int, int]:
        """The number of sequences and the padded length with which a sequence of `length` tokens passes frozen layers.

        A GPU chooses the kernel of a product, and with it the order of its sums, by the product's shape. With one shape
        for each of a few lengths, four an octave, the bits of a sequence do not depend on what it is computed with.

        Raises:
            ValueError: `frozen_tokens` is None.
        """
        if self.frozen_tokens is None:
            raise ValueError("frozen layers are computed by micro-batch")
        step = max(self.multiple, 1 << max(0, (length - 1).bit_length() - 3))
        padded = -(-length // step) * step
        return replace(self, tokens=min(self.tokens, self.frozen_tokens)).most_rows(padded), padded

    def written(self, length: int) -> int:
        """Most answers in flight, of at most `length` tokens each, prompts included."""
        most = self.population * self.written_share * self.tokens // length
        return max(1, most if self.rows is None else min(most, self.written_share * self.rows))

    def largest(self, examples: Iterable[Size]) -> int:
        """Tokens of the largest micro-batch possible with these examples, padding included."""
        sizes = {(self.padded(example), example.row_count) for example in examples}
        return max((length * max(rows, self.most_rows(length)) for length, rows in sizes), default=0)


@dataclass(frozen=True)
class MicroBatch:
    """Arrays of B examples with K candidates in all, R rows padded on the right to T tokens.

    Attributes:
        tokens: int32 [R, T]; the padding is token 0 and never attended to by a scored position (causal mask).
        positions: int32 [S]: scored positions, each once, as indices into the flattened [R * T].
        entry_position: int32 [K, L]: for each scored token of a candidate, an index into `positions`.
        entry_target: int32 [K, L]: the token scored there.
        entry_mask: float32 [K, L]: 1 for a token, 0 for padding.
        candidate: int32 [B, C]: index of each example's candidates into K.
        candidate_mask: bool [B, C]: which of those exist.
        target: int32 [B]: the right candidate of each example.
        shared: all candidates of each example are single tokens scored at one position.
        rows: the R rows without their padding.
        firsts: the first scored position of each row; the row is scored from there to its end.
    """

    tokens: np.ndarray
    positions: np.ndarray
    entry_position: np.ndarray
    entry_target: np.ndarray
    entry_mask: np.ndarray
    candidate: np.ndarray
    candidate_mask: np.ndarray
    target: np.ndarray
    shared: bool
    rows: tuple[tuple[int, ...], ...]
    firsts: tuple[int, ...]

    @cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct scored tokens int32 [N], and the index of each entry of `entry_target` among them, [K * L]."""
        distinct, which = np.unique(self.entry_target, return_inverse=True)
        return distinct, which.reshape(-1).astype(np.int32)

    @property
    def answer_tokens(self) -> np.ndarray:
        """Number of tokens of the first candidate of each example, float32 [B]."""
        return self.entry_mask.sum(axis=-1)[self.candidate[:, 0]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one step or one piece of an evaluation, cut into micro-batches.

    A batch that does not change from step to step is one object: what follows from it is kept with it.

    Attributes:
        parts: the micro-batches, shortest first.
        places: for each micro-batch, the indices of its examples in the batch.
        examples: all of them, in the order of the batch.
        repeats: it is the batch of every step of the run.
    """

    parts: tuple[MicroBatch, ...]
    places: tuple[tuple[int, ...], ...]
    examples: tuple[EncodedExample, ...] = ()
    repeats: bool = False
    _picked: dict[tuple[int, ...], Batch] = field(default_factory=dict, init=False, repr=False)

    @property
    def size(self) -> int:
        """Number of examples."""
        return sum(len(places) for places in self.places)

    def picked(self, numbers: Sequence[int]) -> Batch:
        """A batch of the micro-batches at these indices, with their examples in their order."""
        key = tuple(numbers)
        if key not in self._picked:
            ends = list(accumulate((len(self.places[i]) for i in key), initial=0))
            self._picked.clear()
            self._picked[key] = Batch(
                tuple(self.parts[i] for i in key), tuple(tuple(range(*span)) for span in pairwise(ends))
            )
        return self._picked[key]

    @cached_property
    def joined(self) -> MicroBatch | None:
        """All micro-batches as one, to score states at the positions of one after the other; it has no `tokens`.

        None unless all are `shared`, with as many candidates, so that each example's loss has the same bits.
        """
        parts = self.parts
        if not all(part.shared for part in parts) or len({part.candidate.shape[1] for part in parts}) != 1:
            return None

        def after(name: str, counted: str) -> np.ndarray:
            """Indices into arrays that are joined as well."""
            starts = accumulate((len(getattr(part, counted)) for part in parts), initial=0)
            return np.concatenate([getattr(part, name) + start for part, start in zip(parts, starts, strict=False)])

        same = ("entry_target", "entry_mask", "candidate_mask", "target")
        return replace(
            parts[0],
            tokens=np.zeros((0, 0), np.int32),
            positions=np.arange(sum(len(part.positions) for part in parts), dtype=np.int32),
            entry_position=after("entry_position", "positions"),
            candidate=after("candidate", "entry_target"),
            rows=tuple(row for part in parts for row in part.rows),
            firsts=tuple(first for part in parts for first in part.firsts),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in same},
        )

    @cached_property
    def token_count(self) -> int:
        """Number of tokens, without padding."""
        return sum(len(row) for part in self.parts for row in part.rows)

    @cached_property
    def padded_token_count(self) -> int:
        """Number of tokens, padding included."""
        return sum(part.tokens.size for part in self.parts)


def make_batch(examples: Sequence[EncodedExample], shapes: Shapes) -> Batch:
    """Cuts examples into micro-batches."""
    places = cut(examples, shapes)
    parts = tuple(_collate([examples[i] for i in part], shapes.padded(examples[part[0]])) for part in places)
    return Batch(parts, places, tuple(examples))


def cut(examples: Sequence[Size], shapes: Shapes) -> tuple[tuple[int, ...], ...]:
    """The indices of the examples in each micro-batch, shortest padded length first."""
    # Only examples with one way of scoring share a part: candidates at one position, several candidates, a completion.
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for i, example in enumerate(examples):
        key = (shapes.padded(example), example.shared, example.candidates == 1)
        groups.setdefault(key, []).append(i)
    places: list[tuple[int, ...]] = []
    for (length, _, _), members in sorted(groups.items()):
        limit = shapes.most_rows(length)
        part: list[int] = []
        rows = 0
        for i in members:
            if part and rows + examples[i].row_count > limit:
                places.append(tuple(part))
                part, rows = [], 0
            part.append(i)
            rows += examples[i].row_count
        places.append(tuple(part))
    return tuple(places)


def _collate(examples: Sequence[EncodedExample], length: int) -> MicroBatch:
    """Pads examples to one length, in their given order."""
    row_tokens: list[tuple[int, ...]] = []
    positions: list[int] = []
    entries: list[range] = []
    targets: list[tuple[int, ...]] = []
    candidates: list[range] = []
    for example in examples:
        # For each row, the index into `positions` that its token 0 would have.
        zeros: list[int] = []
        for row in example.rows:
            zeros.append(len(positions) - row.first_position)
            base = len(row_tokens) * length
            positions += range(base + row.first_position, base + len(row.tokens))
            row_tokens.append(row.tokens)
        candidates.append(range(len(entries), len(entries) + example.candidates))
        for (row, start), scored in zip(example.starts, example.targets, strict=True):
            entries.append(range(zeros[row] + start, zeros[row] + start + len(scored)))
        targets += example.targets
    entry_length, width = max(map(len, entries)), max(map(len, candidates))
    return MicroBatch(
        tokens=padded_rows(row_tokens, length),
        positions=np.array(positions, np.int32),
        entry_position=padded_rows(entries, entry_length),
        entry_target=padded_rows(targets, entry_length),
        entry_mask=padded_rows([[1] * len(entry) for entry in entries], entry_length, dtype=np.float32),
        candidate=padded_rows(candidates, width),
        candidate_mask=padded_rows([[1] * len(own) for own in candidates], width, dtype=np.bool_),
        target=np.array([e.target for e in examples], np.int32),
        shared=all(e.shared for e in examples),
        rows=tuple(row_tokens),
        firsts=tuple(row.first_position for example in examples for row in example.rows),
    )


def padded_rows(
    rows: Sequence[Sequence[int]], width: int, count: int | None = None, dtype: type[np.generic] = np.int32
) -> np.ndarray:
    """Rows as one array [count, width], filled up with zeros; as many as there are if `count` is None."""
    array = np.zeros((len(rows) if count is None else count, width), dtype)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(stable_permutation(count, "order", seed, epoch))


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The indices of the examples of one step (from 0), a function of its arguments alone, so any step can be repeated.

    Examples are drawn without replacement within an epoch; a batch may straddle two epochs. A batch of as many or
    more is all of them in one order, so that it is assembled once.
    """
    if batch_size >= count:
        return list(range(count))
    first = step * batch_size
    return [_epoch_order(count, seed, i // count)[i % count] for i in range(first, first + batch_size)]


def by_length(
    examples: Sequence[EncodedExample], rows: int, make: Callable[[Sequence[EncodedExample]], Batch]
) -> Iterator[tuple[list[int], Batch]]:
    """All examples once, in batches of similar length, each with the indices of its examples.

    Args:
        rows: most rows of a batch; an example is never split.
        make: cuts the examples of a batch into micro-batches, when the batch is asked for.
    """
    order = sorted(range(len(examples)), key=lambda i: (examples[i].length, i))
    while order:
        count = within(rows, (examples[i] for i in order))
        indices, order = order[:count], order[count:]
        yield indices, make([examples[i] for i in indices])


def within(rows: int, examples: Iterable[Size]) -> int:
    """The number of leading examples that have at most `rows` rows in all; at least one."""
    together = accumulate(example.row_count for example in examples)
    return max(1, sum(1 for _ in takewhile(lambda count: count <= rows, together)))
