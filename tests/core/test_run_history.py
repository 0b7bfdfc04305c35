"""The history of a run, folded from events written by hand."""

import pytest

from mlxzo.core.events import Resumed
from mlxzo.core.run_history import RunHistory
from tests.experiments.report.recorded import EVALUATION_SECONDS, STEP_SECONDS, evaluated, finished, step, story


def read(told):
    return RunHistory.read((event, 0.0) for event in told)


def test_time_counts_steps_and_validation_and_training_time_steps_alone():
    history = read(finished(story([0.5, 0.6, 0.55], every=3, test=0.58)))
    assert [point.step for point in history.validation] == [0, 3, 6]
    assert [point.training_seconds for point in history.validation] == [0, 3 * STEP_SECONDS, 6 * STEP_SECONDS]
    first = 3 * STEP_SECONDS + EVALUATION_SECONDS
    # Zero-shot, which comes before the first step, and the test at the end take none of it.
    assert [point.seconds for point in history.validation] == [0, first, 2 * first]
    assert history.seconds == 2 * first
    assert history.steps["seconds"][3] == first + STEP_SECONDS and history.steps["step"][3] == 4


def test_best_is_what_the_run_kept_and_zero_shot_where_nothing_was_better():
    assert read(story([0.5, 0.6, 0.7, 0.65])).best.step == 4
    assert read(story([0.5, 0.4, 0.3])).best.step == 0


def test_weights_measured_twice_stay_the_best_where_they_were_the_best():
    """A second evaluation of the same step, asked for by the user, is not better than the first."""
    twice = read([*story([0.5, 0.7]), evaluated("validation", "validation", 2, 0.7)])
    assert twice.best.best and twice.best.step == 2


def test_memory_is_the_most_that_any_event_told():
    history = read([*story([0.5, 0.6], peak_bytes=700), step(3, 3, 900)])
    assert history.peak_bytes == 900 and history.footprint_bytes == 200_000_700


@pytest.mark.parametrize("told", [[], [evaluated("zero-shot", "test", 0, 0.5)]])
def test_a_run_that_has_hardly_begun_has_an_empty_history(told):
    history = read(told)
    assert history.validation == [] and len(history.steps) == 0 and history.best is None and history.peak_bytes is None


def test_what_a_resumed_run_does_again_counts_once():
    before = story([0.5, 0.6, 0.9], every=2)
    history = read([*before, Resumed(4), evaluated("validation", "validation", 4, 0.7), step(5, 9, 1)])
    assert history.steps["step"].tolist() == [1, 2, 3, 4, 5]
    assert [(point.step, point.value) for point in history.validation] == [(0, 0.5), (2, 0.6), (4, 0.7)]
    assert history.seconds == 5 * STEP_SECONDS + 2 * EVALUATION_SECONDS
    again = read([*before, Resumed(1), step(2, 9, 1)])
    assert again.steps["step"].tolist() == [1, 2]
    assert again.best.step == 0
    assert again.seconds == again.training_seconds == 2 * STEP_SECONDS
