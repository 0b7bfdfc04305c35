"""Small plots of a run for a terminal, in braille: training loss, validation metric and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ..core.braille import BLANK, Window, curve
from ..core.formatting import format_bytes, format_loss, format_seconds, objective_words
from ..core.metrics import metric_named
from ..core.run_history import RunHistory

_HEIGHT = 5
_NARROWEST = 30


def plots(history: RunHistory, width: int, cap_bytes: int | None = None) -> list[str]:
    """The plots of a run, as lines of at most `width` characters. A plot of fewer than two points is left out.

    Args:
        cap_bytes: the run's memory cap, named in the title of its plot.
    """
    lines: list[str] = []
    steps, footprints = history.steps, history.footprints
    smoothed = zip(steps["step"], steps["smoothed_loss"], strict=True)
    if len(history.populations):
        metric = metric_named(history.objective)
        means = zip(history.populations["step"], history.populations["mean"], strict=True)
        lines += _plot(f"mean {metric.name} of the members", means, metric.text, _step, width)
    else:
        lines += _plot(f"training {objective_words(history.objective)}, smoothed", smoothed, format_loss, _step, width)
    if history.metric is not None:
        measured = [(each.step, each.value) for each in history.validation]
        metric = metric_named(history.metric)
        lines += _plot(f"validation {metric.name}", measured, metric.text, _step, width)
    cap = "" if cap_bytes is None else f", cap {format_bytes(cap_bytes)}"
    if history.memory is not None:
        sampled = zip(footprints["seconds"], footprints["bytes"], strict=True)
        lines += _plot(f"memory{cap}", sampled, lambda value: format_bytes(int(value)), format_seconds, width)
    return lines


def _step(number: float) -> str:
    return f"step {number:.0f}"


def _plot(
    title: str,
    points: Iterable[tuple[float, float | None]],
    y_text: Callable[[float], str],
    x_text: Callable[[float], str],
    width: int,
) -> list[str]:
    """One plot: its title, the curve with its highest and lowest value at the left, and the ends of its axis below."""
    # A value that is not finite is None. The time of a resumed run falls back to that of its checkpoint.
    ordered = sorted((place, np.nan if value is None else value) for place, value in points)
    x, y = np.array(ordered, dtype=float).reshape(-1, 2).T
    known = np.isfinite(y)
    if known.sum() < 2 or x[-1] <= x[0]:
        return []
    low, high = float(y[known].min()), float(y[known].max())
    labels = [y_text(high), y_text(low)]
    margin = max(map(len, labels))
    columns = max(_NARROWEST, width) - margin - 2
    # A flat curve is drawn in the middle.
    pad = 0.0 if high > low else abs(high) or 1.0
    bits = curve(x, y, Window(x[0], x[-1], low - pad, high + pad), columns, _HEIGHT)
    rows = ["".join(chr(BLANK + int(cell)) for cell in row).rstrip(chr(BLANK)) for row in bits]
    sides = [""] * _HEIGHT
    if pad:
        sides[_HEIGHT // 2] = labels[0]
    else:
        sides[0], sides[-1] = labels
    begin, end = x_text(x[0]), x_text(x[-1])
    axis = f"{begin}{end:>{max(len(end) + 1, columns - len(begin))}}"
    body = [f"{side:>{margin}} ┤{row}" for side, row in zip(sides, rows, strict=True)]
    return ["", title, *body, f"{'':>{margin}}  {axis}"]
