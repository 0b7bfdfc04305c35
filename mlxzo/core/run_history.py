"""What a run has done so far, told from its events and its result."""

from __future__ import annotations

from typing import Any

from .metrics import metric_named


def evaluations(result: dict[str, Any] | None) -> tuple[dict | None, dict | None]:
    """The zero-shot and the tuned evaluation in a result: on the test split, or on validation where there is none."""
    for split, tuned in (("test", ("test",)), ("validation", ("best", "validation"))):
        after = _inside(result, *tuned)
        if after is not None:
            return _inside(result, "zero_shot", split), after
    return None, None


def tuned_merit(result: dict[str, Any] | None) -> float:
    """The tuned evaluation in a result, to sort runs by: the higher, the better; minus infinity where there is none."""
    evaluation = evaluations(result)[1]
    value = _value(evaluation)
    return float("-inf") if evaluation is None or value is None else metric_named(evaluation.get("metric")).merit(value)


def metric_text(evaluation: dict | None) -> str:
    """The value of an evaluation in a result; `-` where there is none."""
    value = _value(evaluation)
    return "-" if evaluation is None or value is None else metric_named(evaluation.get("metric")).text(value)


def _value(evaluation: dict | None) -> float | None:
    value = evaluation and evaluation.get("value")
    return float(value) if isinstance(value, int | float) else None


def _inside(value: Any, *keys: str) -> dict | None:
    """A mapping inside nested mappings; None where a file of another version, or a damaged one, has none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None
