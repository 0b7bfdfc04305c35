"""Which rows a run uses: fixed for ever, nested, and only the training rows depend on the seed."""

import json

import pytest

from mlxzo.core.config import RunConfig
from mlxzo.core.errors import ConfigError, DataError
from mlxzo.tasks.registry import load_task
from mlxzo.tasks.sampling import stable_permutation


def write(path, train, validation, test=()):
    path.mkdir()
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        if rows:
            lines = (json.dumps({"sentence": text, "label": len(text) % 2}) for text in rows)
            (path / f"{name}.jsonl").write_text("\n".join(lines))
    return str(path)


def texts(prefix, n):
    return [f"{prefix} number {i}" for i in range(n)]


def test_the_permutation_is_the_one_it_always_was():
    assert stable_permutation(10, "train", 0) == [4, 7, 2, 0, 5, 6, 1, 8, 3, 9]
    assert stable_permutation(10, "train", 1) != stable_permutation(10, "train", 0)


def test_the_permutation_holds_every_index_once():
    assert sorted(stable_permutation(1000, "x")) == list(range(1000))
    assert stable_permutation(0, "x") == []
    assert stable_permutation(1, "x") == [0]


def test_keys_that_only_look_alike_differ():
    permutations = [stable_permutation(50, *key) for key in (("a", 1), ("a1",), ("a", "1"), ("a", 1, 0))]
    assert len({tuple(permutation) for permutation in permutations}) == 4


def test_first_places_are_spread_evenly():
    n, trials = 10, 2000
    counts = [0] * n
    for seed in range(trials):
        counts[stable_permutation(n, "train", seed)[0]] += 1
    sigma = (trials * 0.1 * 0.9) ** 0.5
    assert all(abs(count - trials / n) < 4 * sigma for count in counts)


def test_training_rows_follow_the_seed_and_held_out_rows_do_not(tmp_path):
    data = write(tmp_path / "d", texts("train", 60), texts("validation", 60), texts("test", 60))
    options = {"task": "sst2", "data": data, "train_examples": 20, "validation_examples": 20, "test_examples": 20}
    one, again, other = (load_task(RunConfig(seed=seed, **options)) for seed in (0, 0, 1))
    assert (one.train, one.validation, one.test) == (again.train, again.validation, again.test)
    assert set(one.train) != set(other.train)
    assert one.validation == other.validation
    assert one.test == other.test
    assert one.sha256 == again.sha256 != other.sha256
    assert [len(split) for split in (one.train, one.validation, one.test)] == [20, 20, 20]


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(tmp_path):
    data = write(tmp_path / "d", texts("train", 40), texts("validation", 40))
    small = load_task(RunConfig(task="sst2", data=data, train_examples=10, validation_examples=10))
    whole = load_task(RunConfig(task="sst2", data=data, train_examples=None, validation_examples=4000))
    assert whole.train[:10] == small.train
    assert whole.validation[:10] == small.validation
    assert len(set(whole.train)) == len(set(whole.validation)) == 40


def test_so_many_of_each_label_are_drawn_by_the_seed(tmp_path):
    uneven = [text + "." * (number % 4 != 0) for number, text in enumerate(texts("train", 40))]
    data = write(tmp_path / "d", uneven, texts("validation", 9))

    def drawn(count, seed=0):
        return load_task(RunConfig(task="sst2", data=data, train_per_label=count, train_examples=3, seed=seed)).train

    targets = [example.target for example in drawn(8)]
    assert sorted(targets) == [0] * 8 + [1] * 8
    assert targets != sorted(targets)  # not label after label
    assert set(drawn(2)) < set(drawn(5)) != set(drawn(5, seed=1))
    rarer = min((len(text) % 2 for text in uneven), key=[len(text) % 2 for text in uneven].count)
    few = [len(text) % 2 for text in uneven].count(rarer)
    with pytest.raises(DataError, match=f"not {few + 1} training rows of every label") as caught:
        drawn(few + 1)
    assert caught.value.details == [f"{('terrible', 'great')[rarer]}: {few}"]


def test_labels_that_a_task_does_not_have_cannot_be_counted(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    (tmp_path / "validation.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(ConfigError, match="no labels"):
        load_task(RunConfig(task="custom", data=str(tmp_path), train_per_label=1))


def test_the_hash_follows_the_rows_and_not_the_path(tmp_path):
    rows = texts("train", 9), texts("validation", 9)
    one = load_task(RunConfig(task="sst2", data=write(tmp_path / "one", *rows)))
    two = load_task(RunConfig(task="sst2", data=write(tmp_path / "two", *rows)))
    changed = load_task(RunConfig(task="sst2", data=write(tmp_path / "three", rows[0], texts("other", 9))))
    assert one.sha256 == two.sha256 != changed.sha256
    assert one.source == "folder one"


def test_held_out_prompts_that_were_trained_on_are_counted(tmp_path):
    train = texts("row", 10)
    data = write(tmp_path / "d", train, ["new", train[3], train[3]], [train[5], "newer"])
    assert load_task(RunConfig(task="sst2", data=data)).duplicates_across_splits == 3
    # Only the rows in use count: what sampling left out leaks nothing.
    few = load_task(RunConfig(task="sst2", data=data, train_examples=1))
    assert few.duplicates_across_splits in (0, 1, 2)
