"""Tokens of prompts and candidates, padding, and a data order without state."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mlxzo.batching import Shapes, batch_indices, by_length, encode, make_batch
from mlxzo.errors import DataError
from mlxzo.tasks.base import Example
from tests.engine.examples import (
    BATCHES,
    TOKENIZER,
    completion_examples,
    several_token_examples,
    single_token_examples,
)


def test_single_token_candidates_share_one_row():
    encoded = encode(single_token_examples()[0], TOKENIZER, 64)
    assert encoded.shared
    assert len(encoded.rows) == 1
    assert list(encoded.rows[0].tokens) == TOKENIZER.encode("The old clock struck nine It was")
    assert encoded.rows[0].first_position == len(encoded.rows[0].tokens) - 1


def test_longer_candidates_have_rows_of_their_own_and_lose_only_the_last_token():
    example = several_token_examples()[0]
    encoded = encode(example, TOKENIZER, 64)
    assert not encoded.shared
    for row, scored, candidate in zip(encoded.rows, encoded.targets, example.candidates, strict=True):
        assert [*row.tokens, scored[-1]] == TOKENIZER.encode(example.prompt + candidate)
        assert row.tokens[row.first_position + 1 :] == scored[:-1]


def test_a_lone_completion_is_never_shared_even_if_it_is_one_token():
    assert not encode(Example("one two", ("!",), 0), TOKENIZER, 64).shared


def test_tokens_that_change_when_joined_belong_to_the_candidate():
    # Joined, "gre" + "at" is tokenised as one word, unlike the prompt alone.
    example = Example("It was gre", ("at", "y"), 0)
    encoded = encode(example, TOKENIZER, 64)
    for row, scored, candidate in zip(encoded.rows, encoded.targets, example.candidates, strict=True):
        assert [*row.tokens[: row.first_position + 1], *scored] == TOKENIZER.encode(example.prompt + candidate)


def test_a_long_prompt_loses_its_beginning():
    example = Example("wet grass " * 50 + "It was", (" terrible", " great"), 1)
    encoded = encode(example, TOKENIZER, 20)
    assert encoded.truncated
    assert all(len(row.tokens) <= 20 for row in encoded.rows)
    full = TOKENIZER.encode(example.prompt)
    context = encoded.rows[0].tokens[: encoded.rows[0].first_position + 1]
    assert list(context) == full[-len(context) :]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Example("a prompt", ("",), 0), "adds no token"),
        (Example("", ("yes",), 0), "prompt is empty"),
        (Example("a prompt", (" yes" * 40,), 0), "longer than max_tokens"),
        (Example("a prompt", (" yes", " no"), None), "no label"),
    ],
)
def test_examples_that_cannot_be_scored_are_refused(example, words):
    with pytest.raises(DataError, match=words):
        encode(example, TOKENIZER, 16)


@pytest.mark.parametrize("kind", BATCHES)
def test_every_scored_position_predicts_its_target(kind):
    for part in BATCHES[kind]().parts:
        rows, length = part.tokens.shape
        assert length % 8 == 0
        flat = part.tokens.reshape(-1)
        for entry in range(len(part.entry_mask)):
            places = part.positions[part.entry_position[entry]]
            scored = part.entry_mask[entry] > 0
            # Inside a candidate, the input after a scored position is the token scored there.
            inner = np.flatnonzero(scored)[:-1]
            assert np.array_equal(flat[places[inner] + 1], part.entry_target[entry][inner])
        assert len(part.rows) == rows


def encoded_examples() -> list:
    examples = several_token_examples() + single_token_examples() + completion_examples()
    return [encode(example, TOKENIZER, 64) for example in examples]


@pytest.mark.parametrize("shapes", [Shapes(), Shapes(16, 64), Shapes(8, 512, 2), Shapes(8, 8), Shapes(64, 4096)])
def test_micro_batches_hold_every_example_once_at_its_own_length_and_within_the_limits(shapes):
    examples = encoded_examples()
    batch = make_batch(examples, shapes)
    assert sorted(i for places in batch.places for i in places) == list(range(len(examples)))
    assert batch.size == len(examples)
    assert sum(len(part.rows) for part in batch.parts) == sum(len(e.rows) for e in examples)
    assert batch.token_count == sum(len(row.tokens) for e in examples for row in e.rows)
    assert batch.padded_token_count >= batch.token_count
    for part, places in zip(batch.parts, batch.places, strict=True):
        assert {shapes.padded(examples[i]) for i in places} == {part.tokens.shape[1]}
        assert list(part.target) == [examples[i].target for i in places]
        assert {examples[i].shared for i in places} == {part.shared}
        if len(places) > 1:
            assert part.tokens.size <= shapes.tokens
            assert shapes.rows is None or len(part.rows) <= shapes.rows


def test_an_epoch_sees_every_example_once_and_epochs_differ():
    count, size = 37, 5
    seen = [i for step in range(37) for i in batch_indices(count, size, 0, step)]
    epochs = [seen[start : start + count] for start in range(0, 5 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_any_step_can_be_asked_for_alone_and_the_seed_matters():
    assert batch_indices(100, 16, 3, 41) == batch_indices(100, 16, 3, 41)
    assert batch_indices(100, 16, 3, 41) != batch_indices(100, 16, 4, 41)
    # A batch larger than the data takes some examples twice, none three times more than another.
    counts = Counter(batch_indices(10, 25, 0, 0))
    assert set(counts.values()) <= {2, 3}


def test_by_length_covers_all_examples_once():
    encoded = [encode(example, TOKENIZER, 64) for example in several_token_examples()]
    indices = [i for part, _ in by_length(encoded, 2, lambda part: make_batch(part, Shapes())) for i in part]
    assert sorted(indices) == list(range(len(encoded)))
    lengths = [encoded[i].length for i in indices]
    assert lengths == sorted(lengths)
