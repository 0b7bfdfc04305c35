"""The embedded reviews: enough rows, balanced, short, and none that is nearly another."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import mlxzo.tasks
from mlxzo.core.config import RunConfig
from mlxzo.tasks.registry import load_task

FOLDER = Path(mlxzo.tasks.__file__).parent / "data" / "reviews"
SIZES = {"train": 400, "validation": 100, "test": 148}


def rows(split):
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text):
    kept = "".join(character if character.isalnum() or character == "'" else " " for character in text.lower())
    return kept.split()


@pytest.mark.parametrize(("split", "size"), SIZES.items())
def test_a_split_has_its_size_and_is_balanced(split, size):
    labels = Counter(row["label"] for row in rows(split))
    assert labels.total() == size
    assert set(labels) == {"negative", "positive"}
    assert 0.45 <= labels["positive"] / size <= 0.55


@pytest.mark.parametrize("split", SIZES)
def test_every_review_is_plain_short_text(split):
    for row in rows(split):
        assert set(row) == {"text", "label"}
        assert row["text"] == " ".join(row["text"].split())
        assert 3 <= len(row["text"].split()) <= 48


def test_no_review_occurs_twice():
    seen = Counter(" ".join(words(row["text"])) for split in SIZES for row in rows(split))
    assert [text for text, count in seen.items() if count > 1] == []


def test_no_two_reviews_share_more_than_half_of_their_word_triples():
    reviews = [row["text"] for split in SIZES for row in rows(split)]
    triples = [set(zip(w, w[1:], w[2:], strict=False)) for w in map(words, reviews)]
    near = [
        (reviews[i], reviews[j])
        for i, j in combinations(range(len(reviews)), 2)
        if len(triples[i] & triples[j]) > 0.5 * min(len(triples[i]), len(triples[j]))
    ]
    assert near == []


def test_no_prompt_of_the_loaded_task_crosses_the_splits():
    data = load_task(RunConfig(task="reviews", train_examples=None, validation_examples=None, test_examples=None))
    assert data.source == "embedded"
    assert [len(split) for split in (data.train, data.validation, data.test)] == list(SIZES.values())
    assert data.duplicates_across_splits == 0
