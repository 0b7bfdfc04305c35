"""The embedded tasks: enough rows, balanced, short, none that is nearly another, and one pool dealt at random."""

import math
from collections import Counter, defaultdict
from itertools import chain, combinations

import pytest

from bench.split_rows import deal, stored
from mlxzo.core.config import RunConfig
from mlxzo.tasks.registry import get_task, load_task

SIZES = {"reviews": (400, 100, 148), "support_desk": (500, 200, 400)}
LONGEST = {"reviews": 48, "support_desk": 60}
tasks = pytest.mark.parametrize("task", SIZES)


def pool(task):
    return list(chain.from_iterable(stored(task).values()))


def words(text):
    kept = "".join(character if character.isalnum() or character == "'" else " " for character in text.lower())
    return kept.split()


@tasks
def test_the_splits_are_one_pool_dealt_at_random(task):
    assert deal(pool(task)[::-1], SIZES[task], task) == stored(task)


@tasks
def test_every_label_has_the_same_share_of_every_split(task):
    for rows in stored(task).values():
        counts = Counter(row["label"] for row in rows)
        assert len(counts) == len(get_task(task).labels)
        assert len(set(counts.values())) == 1


@tasks
def test_every_row_is_plain_short_text(task):
    for row in pool(task):
        assert set(row) == {"text", "label"}
        assert row["text"] == " ".join(row["text"].split())
        assert 3 <= len(row["text"].split()) <= LONGEST[task]


@tasks
def test_no_two_texts_share_more_than_half_of_their_word_triples(task):
    texts = [words(row["text"]) for row in pool(task)]
    triples = [set(zip(w, w[1:], w[2:], strict=False)) for w in texts]
    having = defaultdict(list)
    for place, of_text in enumerate(triples):
        for triple in of_text:
            having[triple].append(place)
    shared = Counter(pair for places in having.values() for pair in combinations(places, 2))
    near = [pair for pair, count in shared.items() if count > 0.5 * min(len(triples[place]) for place in pair)]
    assert [[" ".join(texts[place]) for place in pair] for pair in near] == []


def test_words_alone_do_not_settle_the_queue_of_a_message():
    """Naive Bayes on the words of the training messages (90 % would make a small task of it, 25 % is chance)."""
    splits = stored("support_desk")
    holding = defaultdict(Counter)
    for row in splits["train"]:
        holding[row["label"]].update(set(words(row["text"])))

    def guess(text):
        known = set(words(text))
        return max(holding, key=lambda label: sum(math.log(holding[label][word] + 0.5) for word in known))

    right = [guess(row["text"]) == row["label"] for row in splits["validation"] + splits["test"]]
    assert 0.6 < sum(right) / len(right) < 0.85


@tasks
def test_no_prompt_of_the_loaded_task_crosses_the_splits(task):
    data = load_task(RunConfig(task=task, train_examples=None, validation_examples=None, test_examples=None))
    assert data.source == "embedded"
    assert tuple(map(len, (data.train, data.validation, data.test))) == SIZES[task]
    assert data.duplicates_across_splits == 0
