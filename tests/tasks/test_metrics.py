"""Metrics of answers, against values worked out by hand from the rules of SQuAD's evaluate-v1.1."""

import pytest

from mlxzo.engine.evaluation import Evaluation, mean_metric
from mlxzo.tasks.base import Example
from mlxzo.tasks.metrics import METRICS, normalised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Denver Broncos.", "denver broncos"),
        ("a an the", ""),
        ("Theatre another", "theatre another"),
        ("don't (stop) 1,000", "dont stop 1000"),
        ("Élan—vital", "élan—vital"),
    ],
)
def test_normalised(text, plain):
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Broncos!", ["broncos"], 1.0, 1.0),
        ("Denver Broncos", ["Broncos"], 0.0, 2 / 3),
        ("Denver Broncos", ["Carolina Panthers", "the Denver team"], 0.0, 0.5),
        ("", ["Broncos"], 0.0, 0.0),
        ("no no no", ["no"], 0.0, 0.5),
        ("the", ["a"], 1.0, 0.0),
    ],
)
def test_exact_match_and_f1_take_the_gold_answer_that_suits_best(answer, gold, exact, f1):
    assert METRICS["exact_match"](answer, gold) == exact
    assert METRICS["f1"](answer, gold) == pytest.approx(f1)


def test_accuracy_takes_any_right_candidate_and_no_other_spelling():
    assert [METRICS["accuracy"](answer, [" yes", " yeah"]) for answer in (" yes", " yeah", "yes", " no")] == [
        1,
        1,
        0,
        0,
    ]


def test_a_mean_is_over_the_examples_own_gold_answers():
    examples = [Example("p", (" yes", " no"), 1), Example("p", (" red blue\n",), 0, answers=("red blue", "green"))]
    assert mean_metric("f1", ["no", "green"], examples) == 1.0
    assert mean_metric("f1", ["yes", "blue"], examples) == pytest.approx(1 / 3)


def test_f1_is_compared_as_accuracy_is():
    def outcome(value, loss):
        return Evaluation("f1", value, loss, 100, None, 1.0)

    assert outcome(0.85, 0.6).better_than(outcome(0.75, 0.5))
    # Within one standard error the loss decides.
    assert not outcome(0.78, 0.53).better_than(outcome(0.75, 0.51))
