"""What a run has done so far, told from its events and its result."""

from __future__ import annotations

from typing import Any


def evaluations(result: dict[str, Any] | None) -> tuple[dict | None, dict | None]:
    """The zero-shot and the tuned evaluation in a result: on the test split, or on validation where there is none."""
    for split, tuned in (("test", ("test",)), ("validation", ("best", "validation"))):
        after = _inside(result, *tuned)
        if after is not None:
            return _inside(result, "zero_shot", split), after
    return None, None


def _inside(value: Any, *keys: str) -> dict | None:
    """A mapping inside nested mappings; None where a file of another version, or a damaged one, has none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None
