"""The result of a run in words: both splits before and after, majority class, and why a state was kept."""

from dataclasses import replace

from mlxzo.core import events
from mlxzo.core.result_summary import ended_text, result_summary
from mlxzo.core.run_history import RunHistory
from tests.experiments.report.recorded import evaluated, story


def summary(told):
    return dict(result_summary(RunHistory.read((event, 0.0) for event in told)))


def measured(step, value, loss, best=True):
    """A validation evaluation with a loss of its own: on 100 examples one standard error is 4 to 5 points."""
    return replace(evaluated("validation", "validation", step, value, best), loss=loss)


def test_both_splits_are_named_with_n_and_standard_error():
    assert summary(story([0.5, 0.7, 0.9], test=0.8)) == {
        "test accuracy": "50.0 % -> 80.0 %, standard error 4.0 points, n = 100",
        "validation accuracy": "50.0 % -> 90.0 %, standard error 3.0 points, n = 100",
        "majority class": "52.0 % on test, 52.0 % on validation",
        "state kept": "step 4: the highest validation accuracy",
    }


def test_a_run_that_has_not_trained_has_what_was_measured_before():
    assert summary([]) == {}
    assert summary(story([0.5])) == {
        "validation accuracy": "50.0 % before training, standard error 5.0 points, n = 100",
        "majority class": "52.0 % on validation",
    }
    told = [evaluated("zero-shot", "test", 0, 0.5)]
    assert summary(told)["test accuracy"] == "50.0 % before training, standard error 5.0 points, n = 100"


def test_the_lowest_loss_among_ties_is_said():
    told = [evaluated("zero-shot", "validation", 0, 0.5)]
    told += [measured(2, 0.76, 0.52), measured(4, 0.74, 0.51), measured(6, 0.75, 0.53, best=False)]
    kept = "step 4: the lowest loss of 3 evaluations within one standard error in validation accuracy"
    assert summary(told)["state kept"] == kept
    # Each ties with the one kept at its time, and the last lies far below the highest.
    chain = [measured(2, 0.66, 0.6), measured(4, 0.70, 0.59), measured(6, 0.67, 0.58), measured(8, 0.63, 0.57)]
    assert summary([told[0], *chain])["state kept"] == "step 8: no later evaluation was better"


def test_a_run_that_improved_nothing_keeps_the_model_as_it_was():
    told = [evaluated("zero-shot", "validation", 0, 0.5), measured(2, 0.3, 0.9, best=False)]
    assert summary(told)["validation accuracy"].startswith("50.0 % -> 50.0 %")
    assert summary(told)["state kept"] == "step 0, before training: no later evaluation was better"


def test_a_metric_that_is_no_share_has_no_standard_error_and_its_own_direction():
    for name, better, word in (("loss", 2.8, "lowest"), ("reward", 3.4, "highest")):
        before = replace(evaluated("zero-shot", "validation", 0, 3.2), metric=name, majority=None)
        after = replace(before, kind="validation", step=2, value=better, best=True)
        assert summary([before, after]) == {
            f"validation {name}": f"3.200 -> {better:.3f}, n = 100",
            "state kept": f"step 2: the {word} validation {name}",
        }


def test_values_that_are_not_finite_and_shares_of_1_are_said_without_an_error():
    zero = events.Evaluated("zero-shot", "validation", 0, "accuracy", 0.5, None, 20, None, 1.0, False)
    best = replace(zero, kind="validation", step=2, value=1.0, loss=0.1, best=True, more={"f1": 0.9})
    assert summary([zero, best])["validation accuracy"] == "50.0 % -> 100.0 %, n = 20, f1 90.0 %"
    assert summary([replace(zero, value=None), best])["validation accuracy"].startswith("n/a -> 100.0 %")


def test_the_plateau_is_of_what_patience_watches():
    for objective, words in (("loss", "loss fell"), ("reward", "reward rose")):
        finished = events.Finished({"stopped_by": "plateau", "objective": objective, "metric": "reward"})
        assert ended_text(RunHistory.read([(finished, 0.0)])) == f", ended as the validation {words} no further"
