"""The series of a run, read from events written by hand."""

import pytest

from mlxzo.core.curves import Curves
from mlxzo.core.events import Resumed
from tests.experiments.report.recorded import EVALUATION_SECONDS, STEP_SECONDS, evaluated, finished, step, story


def read(told):
    return Curves.read((event, 0.0) for event in told)


def test_time_counts_steps_and_validation_and_training_time_steps_alone():
    curves = read(finished(story([0.5, 0.6, 0.55], every=3, test=0.58)))
    assert [point.step for point in curves.validation] == [0, 3, 6]
    assert [point.training_seconds for point in curves.validation] == [0, 3 * STEP_SECONDS, 6 * STEP_SECONDS]
    first = 3 * STEP_SECONDS + EVALUATION_SECONDS
    # Zero-shot, which comes before the first step, and the test at the end take none of it.
    assert [point.seconds for point in curves.validation] == [0, first, 2 * first]
    assert curves.seconds == 2 * first
    assert curves.steps[3].seconds == first + STEP_SECONDS and curves.steps[3].step == 4


def test_best_is_what_the_run_kept_and_zero_shot_where_nothing_was_better():
    assert read(story([0.5, 0.6, 0.7, 0.65])).best.step == 4
    assert read(story([0.5, 0.4, 0.3])).best.step == 0


def test_memory_is_the_most_that_any_event_told():
    curves = read([*story([0.5, 0.6], peak_bytes=700), step(3, 3, 900)])
    assert curves.peak_bytes == 900 and curves.footprint_bytes == 200_000_700


@pytest.mark.parametrize("told", [[], [evaluated("zero-shot", "test", 0, 0.5)]])
def test_a_run_that_has_hardly_begun_has_empty_curves(told):
    curves = read(told)
    assert curves.validation == curves.steps == [] and curves.best is None and curves.peak_bytes is None


def test_what_a_resumed_run_does_again_counts_once():
    before = story([0.5, 0.6, 0.9], every=2)
    curves = read([*before, Resumed(4), evaluated("validation", "validation", 4, 0.7), step(5, 9, 1)])
    assert [point.step for point in curves.steps] == [1, 2, 3, 4, 5]
    assert [(point.step, point.value) for point in curves.validation] == [(0, 0.5), (2, 0.6), (4, 0.7)]
    assert curves.seconds == 5 * STEP_SECONDS + 2 * EVALUATION_SECONDS
    again = read([*before, Resumed(1), step(2, 9, 1)])
    assert [point.step for point in again.steps] == [1, 2]
    assert again.best.step == 0
    assert again.seconds == again.training_seconds == 2 * STEP_SECONDS
