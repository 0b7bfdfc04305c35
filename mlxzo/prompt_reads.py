"""Which prompts are read together, and what of them is read once: plain arithmetic on tokens, without MLX.

Prompts often begin alike: several questions about one passage, or one set of demonstrations before every question. What
they share is read once and its keys and values are copied, so that of each prompt only the rest is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .batching import Shapes, common_prefix

MAX_NEW_TOKENS = 50
"""Longest answer (Malladi et al. 2023, Appendix E.4)."""

# What is shared takes a pass over the weights of its own, which costs as much as some tokens more in another.
_LEAST_SAVED = 64


@dataclass(frozen=True)
class Prompt:
    """What is read before an answer is written, and where it is wanted the answer that is expected.

    Attributes:
        tokens: at least one.
        expected: tokens that are to be scored as they would follow.
    """

    tokens: tuple[int, ...]
    expected: tuple[int, ...] = ()

    @property
    def read(self) -> tuple[int, ...]:
        """All tokens that are read: the last expected one is never an input."""
        return self.tokens + self.expected[:-1]


@dataclass(frozen=True)
class Read:
    """Prompts, by number, that are read in one pass after the `shared` tokens that all of them begin with."""

    numbers: tuple[int, ...]
    shared: tuple[int, ...] = ()


def reads(prompts: Sequence[Prompt], shapes: Shapes, longest: int) -> list[Read]:
    """Every prompt once, short ones first; reads that share a beginning follow each other.

    Args:
        shapes: bounds of what is read in one pass, and of the answers under way.
        longest: tokens of an answer, at most.
    """
    groups, alone = [], []
    for shared, numbers in _alike([prompt.tokens for prompt in prompts]):
        if shared:
            groups.append((shared, numbers))
        else:
            alone += numbers
    found = []
    for shared, numbers in [*groups, ((), alone)]:
        numbers = sorted(numbers, key=lambda i: (len(prompts[i].read), i))
        parts = list(_parts(prompts, numbers, len(shared), shapes, longest))
        # A group stays together, in the place of its shortest prompt; what shares nothing goes wherever it fits.
        places = [parts[0] if shared else part for part in parts]
        found += [
            (len(prompts[place[0]].read), place[0], Read(part, shared))
            for place, part in zip(places, parts, strict=True)
        ]
    return [read for _, _, read in sorted(found, key=lambda entry: entry[:2])]


def _alike(prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Groups of prompts, by number, with what all of a group begin with where it is worth to be read by itself: at
    least half of each prompt, and never all of one."""
    group: list[int] = []
    shared: tuple[int, ...] = ()
    longest = 0
    # In this order, neighbours have most in common.
    for number in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        # The last token is read anew, for what follows it.
        own = prompts[number][:-1]
        common = common_prefix(shared, own)
        if group and 2 * common >= max(longest, len(own)):
            group.append(number)
            shared, longest = shared[:common], max(longest, len(own))
            continue
        if group:
            yield _worth(shared, group), group
        group, shared, longest = [number], own, len(own)
    if group:
        yield _worth(shared, group), group


def _worth(shared: tuple[int, ...], group: Sequence[int]) -> tuple[int, ...]:
    return shared if (len(group) - 1) * len(shared) >= _LEAST_SAVED else ()


def _parts(
    prompts: Sequence[Prompt], numbers: Sequence[int], shared: int, shapes: Shapes, longest: int
) -> Iterator[tuple[int, ...]]:
    """Prompts in order of length, cut so that what of them is read in one pass, and the answers that begin with it,
    keep to `shapes`."""
    part: list[int] = []
    for number in numbers:
        length = len(prompts[number].read)
        if part and len(part) >= min(shapes.most_rows(length - shared), shapes.written(length + longest)):
            yield tuple(part)
            part = []
        part.append(number)
    if part:
        yield tuple(part)
