"""Shared prefixes: groups of sequences that are read together, their common beginning once. Imports no MLX.

Prompts often begin alike: several questions about one passage, one set of demonstrations before every question, or one
prompt before each of its candidates. A shared prefix is read once and its keys and values are copied, so that only the
rest of each sequence is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .batching import Shapes
from .encoding import Row, common_prefix

MAX_NEW_TOKENS = 50
"""Longest answer (Malladi et al. 2023, Appendix E.4)."""

# Fewest tokens that sharing a prefix must save: the prefix takes a pass over the weights of its own.
_LEAST_SAVED = 64


@dataclass(frozen=True)
class Prompt:
    """The tokens before an answer, and optionally an expected answer to score.

    Attributes:
        tokens: at least one.
        expected: tokens to score as the continuation.
    """

    tokens: tuple[int, ...]
    expected: tuple[int, ...] = ()

    @property
    def row(self) -> Row:
        """The row to read: the last expected token is never an input."""
        return Row(self.tokens + self.expected[:-1], len(self.tokens) - 1)


@dataclass(frozen=True)
class Read:
    """Rows, by index, that are read in one pass after their `shared` prefix."""

    numbers: tuple[int, ...]
    shared: tuple[int, ...] = ()


def reads(rows: Sequence[Row], shapes: Shapes, longest: int = 0) -> list[Read]:
    """Groups all rows into reads, short rows first; reads of one prefix follow each other.

    Args:
        rows: a shared prefix ends before their first scored position.
        shapes: bounds of the tokens of one pass, and of the keys and values held.
        longest: most tokens of the answer that follows each row.
    """
    groups, alone = [], []
    for shared, numbers in _groups([row.tokens[: row.first_position + 1] for row in rows]):
        if (len(numbers) - 1) * len(shared) >= _LEAST_SAVED:
            groups.append((shared, numbers))
        else:
            alone += numbers
    found = []
    for shared, numbers in [*groups, ((), alone)]:
        numbers = sorted(numbers, key=lambda i: (len(rows[i].tokens), i))
        parts = list(_split(rows, numbers, len(shared), shapes, longest))
        # A group stays together, in the place of its shortest row; rows without a prefix are sorted by length.
        places = [parts[0] if shared else part for part in parts]
        found += [
            (len(rows[place[0]].tokens), place[0], Read(part, shared))
            for place, part in zip(places, parts, strict=True)
        ]
    return [read for _, _, read in sorted(found, key=lambda entry: entry[:2])]


def worth_sharing(rows: Sequence[Row], shapes: Shapes, share: float = 1.0) -> bool:
    """True if reading shared prefixes once takes less than half the tokens of reading each row whole.

    Args:
        share: of the layers that a whole row goes through; the output of the others is cached.
    """
    found = reads(rows, shapes)
    shared = sum(len(beginning) for beginning, _ in groupby(read.shared for read in found))
    rest = sum(len(rows[number].tokens) - len(read.shared) for read in found for number in read.numbers)
    return 2 * (shared + rest) < share * sum(len(row.tokens) for row in rows)


def _groups(prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Groups prompts: yields prefixes, at least half of each of their prompts and never a whole one, with the indices
    of those prompts."""
    group: list[int] = []
    shared: tuple[int, ...] = ()
    longest = 0
    # In this order, neighbours have most in common.
    for number in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        # The last token is read for each prompt: its state predicts the next one.
        own = prompts[number][:-1]
        common = common_prefix(shared, own)
        if group and 2 * common >= max(longest, len(own)):
            group.append(number)
            shared, longest = shared[:common], max(longest, len(own))
        else:
            if group:
                yield shared, group
            group, shared, longest = [number], own, len(own)
    if group:
        yield shared, group


def _split(
    rows: Sequence[Row], numbers: Sequence[int], shared: int, shapes: Shapes, longest: int
) -> Iterator[tuple[int, ...]]:
    """Cuts rows, sorted by length, into parts whose pass and whose answers keep to the bounds of `shapes`."""
    part: list[int] = []
    for number in numbers:
        length = len(rows[number].tokens)
        if part and len(part) >= min(shapes.most_rows(length - shared), shapes.written(length + longest)):
            yield tuple(part)
            part = []
        part.append(number)
    if part:
        yield tuple(part)
