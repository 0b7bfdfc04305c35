"""The result of a run in words, the same in every display: each split before and after training, and the state kept."""

from __future__ import annotations

import math

from . import events
from .config import GENERATED
from .formatting import format_metric, more_metrics_text
from .metrics import metric_named, standard_error
from .run_history import RunHistory


def result_summary(history: RunHistory) -> list[tuple[str, str]]:
    """Names and values of a run's result so far; empty before its first evaluation.

    A row for each split with the metric before and after training, the standard error of the latter and the number of
    examples; the majority class; and the step whose state is kept, with the reason.
    """
    trained = len(history.validation) > 1
    pairs = {
        "test": (history.zero_shot.get("test"), history.test),
        "validation": (history.zero_shot.get("validation"), history.best if trained else None),
    }
    # The latest evaluation of each split that has one.
    latest = {split: found for split, (before, after) in pairs.items() if (found := after or before) is not None}
    rows = [(f"{split} {found.metric}", _before_and_after(*pairs[split])) for split, found in latest.items()]
    if shares := [
        f"{format_metric(found.metric, found.majority)} on {split}"
        for split, found in latest.items()
        if found.majority is not None
    ]:
        rows.append(("majority class", ", ".join(shares)))
    if kept := _kept_text(history):
        rows.append(("state kept", kept))
    return rows


def ended_text(history: RunHistory) -> str:
    """The reason why a finished run has no more steps, after a comma; empty where it made all of its steps."""
    result = history.outcome.result if isinstance(history.outcome, events.Finished) else {}
    # What the plateau is of: see `Trainer._on_plateau`.
    watched = f"{result.get('metric')} rose" if result.get("objective") in GENERATED else "loss fell"
    words = {"time": ", ended by its time limit", "plateau": f", ended as the validation {watched} no further"}
    return words.get(str(result.get("stopped_by")), "")


def _kept_text(history: RunHistory) -> str:
    """The step whose state is kept and the reason, by the validation split; empty before an evaluation after training.

    Values of a share within one standard error count as ties, which the loss decides (`Evaluation.better_than`).
    """
    kept = history.best
    evaluations = [each.evaluation for each in history.validation]
    others = [each for each in evaluations if each is not kept]
    if kept is None or not others:
        return ""
    if kept.kind == "zero-shot":
        return "step 0, before training: no later evaluation was better"
    metric = metric_named(kept.metric)
    values = [(each, metric.merit(each.value)) for each in others if each.value is not None]
    own = metric.merit(kept.value)
    error = standard_error(kept.value, kept.examples) if metric.is_share else 0.0
    ties = [each for each, value in values if metric.is_share and abs(value - own) <= error]
    beaten = all(value < own for each, value in values if each not in ties)
    if beaten and not ties:
        return f"step {kept.step}: the {'highest' if metric.higher_is_better else 'lowest'} validation {kept.metric}"
    if beaten and all(_loss(kept) <= _loss(each) for each in ties):
        return (
            f"step {kept.step}: the lowest loss of {len(ties) + 1} evaluations within one standard error in "
            f"validation {kept.metric}"
        )
    # Ties are compared pair by pair, each with the state kept at its time, and need not agree with all the others.
    return f"step {kept.step}: no later evaluation was better"


def _before_and_after(before: events.Evaluated | None, after: events.Evaluated | None) -> str:
    found = after or before
    assert found is not None
    metric = metric_named(found.metric)
    if before is None or before.metric != found.metric:
        text = metric.text(found.value)
    elif after is None:
        text = f"{metric.text(before.value)} before training"
    else:
        text = f"{metric.text(before.value)} -> {metric.text(after.value)}"
    # Of a share of 0 or 1 the formula gives no error at all.
    if metric.is_share and found.value is not None and (error := standard_error(found.value, found.examples)):
        text += f", standard error {100 * error:.1f} points"
    return f"{text}, n = {found.examples:,}{more_metrics_text(found.more)}"


def _loss(evaluation: events.Evaluated) -> float:
    """The loss; one that was not finite, which events hold as None, is above all others."""
    return math.inf if evaluation.loss is None else evaluation.loss
