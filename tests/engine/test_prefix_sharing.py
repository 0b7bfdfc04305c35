"""Which prompts are read together: each once, what they share only once, and never more than the bounds allow."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from mlxzo.engine.batching import Shapes
from mlxzo.engine.prefix_sharing import Prompt, Read, reads, worth_sharing

LONGEST = 10
SHAPES = Shapes(tokens=200, written_share=4)


def tokens_read(found: list[Read], prompts: list[Prompt]) -> int:
    """Tokens of all passes, padding included; what is shared counts once."""
    shared = {read.shared for read in found}
    rest = [max(len(prompts[i].row.tokens) for i in read.numbers) - len(read.shared) for read in found]
    return sum(map(len, shared)) + sum(len(read.numbers) * length for read, length in zip(found, rest, strict=True))


def questions(passages: int, each: int, passage: int = 100) -> list[Prompt]:
    """Prompts of a passage and a question of 5 to 15 tokens, in no order; all passages have the same title of 6."""
    rng, prompts = random.Random(0), []
    for first in range(passages):
        begin = (*range(6), 1000 + first, *(rng.randrange(500) for _ in range(passage - 7)))
        prompts += [Prompt((*begin, *(rng.randrange(500) for _ in range(rng.randrange(5, 16))))) for _ in range(each)]
    rng.shuffle(prompts)
    return prompts


def test_what_the_questions_about_a_passage_share_is_read_once():
    prompts = questions(passages=6, each=5)
    found = reads([prompt.row for prompt in prompts], SHAPES, LONGEST)
    assert sorted(i for read in found for i in read.numbers) == list(range(30))
    assert len({read.shared for read in found}) == 6
    assert all(prompts[i].tokens[: len(read.shared)] == read.shared for read in found for i in read.numbers)
    assert all(len(read.shared) == 100 for read in found)
    # 600 tokens of passages and 300 of questions, where a pass for each would read 3,300.
    assert tokens_read(found, prompts) < 1100
    # A passage is done with before the next is begun.
    order = [read.shared for read in found]
    assert len(list(groupby(order))) == 6


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        (questions(passages=5, each=1), "a title is less than half of them"),
        ([Prompt((1, 2, 3, last)) for last in range(9)], "so little costs more to read by itself"),
        ([Prompt((token,)) for token in (4, 4, 4)], "a last token is read for what follows it"),
    ],
)
def test_prompts_with_little_in_common_share_nothing(prompts, why):
    assert {read.shared for read in reads([prompt.row for prompt in prompts], SHAPES, LONGEST)} == {()}, why


def test_sharing_is_worth_it_where_it_saves_half_of_what_would_be_read():
    alike = [prompt.row for prompt in questions(passages=6, each=5)]
    # Some 900 tokens in place of 3,300.
    assert worth_sharing(alike, SHAPES) and worth_sharing(alike, SHAPES, share=0.6)
    assert not worth_sharing(alike, SHAPES, share=0.5)
    assert not worth_sharing([prompt.row for prompt in questions(passages=30, each=1)], SHAPES)
    assert not worth_sharing([], SHAPES)


def test_equal_prompts_share_all_but_their_last_token():
    prompt = Prompt(tuple(range(80)), expected=(3, 4))
    assert reads([prompt.row] * 3, SHAPES, LONGEST) == [Read((0, 1, 2), prompt.tokens[:-1])]


@pytest.mark.parametrize("rows", [None, 2])
def test_passes_keep_to_the_bounds(rows):
    rng = random.Random(1)
    shapes = Shapes(tokens=200, rows=rows, written_share=4)
    expected = [tuple(range(rng.randrange(0, 60))) for _ in range(80)]
    own = [Prompt(tuple(rng.randrange(500) for _ in range(rng.randrange(1, 150)))) for _ in range(40)]
    prompts = [Prompt(p.tokens, e) for p, e in zip([*own, *questions(4, 10)], expected, strict=True)]
    for read in reads([prompt.row for prompt in prompts], shapes, LONGEST):
        longest = max(len(prompts[i].row.tokens) for i in read.numbers)
        if len(read.numbers) > 1:
            assert len(read.numbers) * (longest - len(read.shared)) <= shapes.tokens
            assert len(read.numbers) * (longest + LONGEST) <= 4 * shapes.tokens
        assert rows is None or len(read.numbers) <= rows
