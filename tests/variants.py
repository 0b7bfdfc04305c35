"""Variants of a test that repeat a behaviour: a few run in the default suite, the others are marked slow."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """One set of parameters, marked slow; as a variant, several of which run at a time."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.variant])


def mostly_slow(values: Iterable[Any], default: Container[Any]) -> list[Any]:
    """Values of one parameter, marked slow unless they are among `default`."""
    return [value if value in default else slow(value) for value in values]


def crossed(cases: Iterable[tuple], others: Iterable[tuple]) -> list[Any]:
    """Each case with each of `others`, as one tuple: marked slow unless the case or the other is the first one."""
    cases, others = list(cases), list(others)
    return [
        (*case, *other) if i == 0 or j == 0 else slow(*case, *other)
        for i, case in enumerate(cases)
        for j, other in enumerate(others)
    ]
