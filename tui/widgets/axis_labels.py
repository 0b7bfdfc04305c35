"""Labels of a chart's axes: numbers, counts, percentages, sizes and times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlxzo.core.formatting import format_bytes
from mlxzo.core.metrics import Metric, metric_named


def plain(values: Sequence[float]) -> list[str]:
    """Tick labels with as many decimals as they need to differ."""
    gap = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    decimals = 0 if gap >= 1 else min(6, int(np.ceil(-np.log10(gap) - 1e-9)))
    return [f"{value:,.{decimals}f}" for value in values]


def counts(values: Sequence[float]) -> list[str]:
    """Tick labels of counts: 0, 500, 10k."""
    if max(map(abs, values), default=0) >= 10_000:
        return [f"{value / 1000:g}k" for value in values]
    return [f"{value:g}" for value in values]


def percent(values: Sequence[float]) -> list[str]:
    """Tick labels of shares: 0.5 as 50 %."""
    return [f"{label} %" for label in plain([100 * value for value in values])]


def size(values: Sequence[float]) -> list[str]:
    """Tick labels of bytes, all in the unit of the largest."""
    unit, scale = ("GB", 1e9) if max(values, default=0) >= 1e9 else ("MB", 1e6)
    return [f"{label} {unit}" for label in plain([value / scale for value in values])]


def clock(values: Sequence[float]) -> list[str]:
    """Tick labels of seconds, all in one unit: 0 s, 30 s; 5 min, 10 min; 1:30 h, 2:00 h."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    most = max(map(abs, values), default=0.0)

    def label(value: float) -> str:
        if step % 3600 == 0:
            return f"{value / 3600:g} h"
        if step % 60 == 0 and most >= 7200:
            hours, minutes = divmod(round(value / 60), 60)
            return f"{hours}:{minutes:02d} h"
        if step % 60 == 0:
            return f"{value / 60:g} min"
        if most < 600:
            return f"{value:g} s"
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes}:{seconds:02d} min"

    return [label(value) for value in values]


@dataclass(frozen=True)
class Scale:
    """Formats of a vertical axis: the labels of its ticks, made together, and a single value."""

    labels: Callable[[Sequence[float]], list[str]]
    value: Callable[[float], str]


PLAIN = Scale(plain, "{:.4f}".format)
RATE = Scale(plain, "{:.2f}".format)
PERCENT = Scale(percent, Metric("share").text)
NUMBER = Scale(plain, Metric("number", is_share=False).text)
BYTES = Scale(size, lambda value: format_bytes(int(value)))


def metric_scale(*metrics: str) -> Scale:
    """The scale of an axis that values of these metrics share: percent if all of them are shares."""
    return PERCENT if all(metric_named(metric).is_share for metric in metrics) else NUMBER
