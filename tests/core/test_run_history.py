"""The history of a run, folded from events written by hand."""

import pytest

from mlxzo.core.events import Population, Resumed
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


def population(number, *rewards, changed=0.3, answers=()):
    return Population(number, list(rewards), 0.1, changed, list(answers))


def test_a_population_is_kept_as_a_row_a_step_and_its_last_answers():
    said = {"prompt": "a", "best": "b", "median": "c"}
    told = [population(1, 0.25, 0.75, answers=[said]), step(1, 9, 1), population(2, 1.0, 1.0, changed=0.0)]
    history = read(told)
    rows = [history.populations[name].tolist() for name in ("step", "mean", "deviation", "changed")]
    assert rows == [[1, 2], [0.5, 1.0], [0.25, 0.0], [0.3, 0.0]]
    assert history.population is told[2] and history.written is told[0] and history.steps["step"].tolist() == [1]


@pytest.mark.parametrize("resumed", [[], [Resumed(1)]])
def test_the_populations_of_steps_that_a_resumed_run_repeats_count_once(resumed):
    """The run was killed between the population of step 3 and the step itself, and goes on from step 1."""
    first = [event for n in (1, 2) for event in (population(n, 0.25), step(n, 9, 1))]
    history = read([*first, population(3, 0.25), *resumed, population(2, 0.5), step(2, 9, 1)])
    assert history.populations["step"].tolist() == history.steps["step"].tolist() == [1, 2]
    assert history.populations["mean"].tolist() == [0.25, 0.5]
    history.add(population(3, 0.75))
    assert history.populations["step"].tolist() == [1, 2, 3] and history.steps["step"].tolist() == [1, 2]


def test_rewards_of_any_size_that_an_event_may_have_are_kept():
    assert read([population(1, 1e99, -1e99)]).populations["deviation"][0] == pytest.approx(1e99)
