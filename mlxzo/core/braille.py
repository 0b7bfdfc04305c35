"""Curves as braille characters of 2 x 4 dots, in numpy alone.

A column of dots covers the whole range of the points that fall in it, so that no spike is lost however long the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Bit of each dot in a braille cell, [4 rows, 2 columns], counted from U+2800.
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
BLANK = 0x2800


@dataclass(frozen=True)
class Window:
    """The part of the plane that is shown; `log` makes the vertical axis logarithmic, in the data's own units."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool = False

    def height_of(self, y: np.ndarray) -> np.ndarray:
        """Positions on the vertical axis, 0 at the bottom and 1 at the top; NaN for values without a logarithm."""
        y = np.asarray(y, dtype=float)
        low, high = self.y0, self.y1
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                y, low, high = np.log10(y), math.log10(low), math.log10(high)
            y = np.where(np.isfinite(y), y, np.nan)
        return (y - low) / (high - low)

    def across(self, x: np.ndarray) -> np.ndarray:
        """Positions on the horizontal axis, 0 at the left and 1 at the right."""
        return (np.asarray(x, dtype=float) - self.x0) / (self.x1 - self.x0)


def curve(x: np.ndarray, y: np.ndarray, window: Window, width: int, height: int, *, area: bool = False) -> np.ndarray:
    """Braille bits [height, width] of a curve through points whose `x` never falls.

    Args:
        area: fill from the curve down to the bottom of the window.
    """
    columns, rows = 2 * width, 4 * height
    bits = np.zeros((height, width), dtype=np.uint8)
    up = window.height_of(y)
    known = np.isfinite(up) & np.isfinite(np.asarray(x, dtype=float))
    x, up = np.asarray(x, dtype=float)[known], up[known]
    if not len(x) or not columns or not rows:
        return bits
    low, high = _ranges(window.across(x) * columns, up, columns)
    # Dot rows count from the top.
    top = np.floor((1 - high) * rows)
    bottom = np.floor((1 - low) * rows)
    # The very bottom of the window belongs to its last row.
    on_edge = low == 0
    bottom[on_edge] = rows - 1
    top[on_edge & (high == 0)] = rows - 1
    if area:
        bottom = np.where(np.isfinite(bottom), rows, np.nan)
    row = np.arange(rows)[:, None]
    with np.errstate(invalid="ignore"):
        dots = (row >= top) & (row <= bottom)
    return _cells(dots)


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, window: Window, width: int, height: int) -> np.ndarray:
    """Braille bits [height, width] of the area between two curves over the same rising `x`: every second dot."""
    columns, rows = 2 * width, 4 * height
    at = window.x0 + (np.arange(columns) + 0.5) / columns * (window.x1 - window.x0)
    bottom, top = (window.height_of(np.interp(at, x, edge, left=np.nan, right=np.nan)) * rows for edge in (low, high))
    middle = rows - np.arange(rows)[:, None] - 0.5
    with np.errstate(invalid="ignore"):
        dots = (middle >= bottom) & (middle <= top)
    return _cells(dots & ((np.arange(rows)[:, None] + np.arange(columns)) % 2 == 0))


def _cells(dots: np.ndarray) -> np.ndarray:
    """The braille bits [rows / 4, columns / 2] of dots, bool [rows, columns]."""
    cells = dots.reshape(dots.shape[0] // 4, 4, dots.shape[1] // 2, 2)
    return (cells * _BITS[None, :, None, :]).sum(axis=(1, 3)).astype(np.uint8)


def _ranges(across: np.ndarray, up: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of a curve within each column; NaN where it does not pass."""
    at_edges = np.interp(np.arange(columns + 1), across, up, left=np.nan, right=np.nan)
    low, high = np.fmin(at_edges[:-1], at_edges[1:]), np.fmax(at_edges[:-1], at_edges[1:])
    inside = (across >= 0) & (across <= columns)
    column = np.minimum(across[inside].astype(int), columns - 1)
    np.fmin.at(low, column, up[inside])
    np.fmax.at(high, column, up[inside])
    return low, high


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers between two bounds, evenly spaced."""
    if not high > low or count < 1:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.75 * rough)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def row_axis(low: float, high: float, rows: int) -> tuple[float, float, list[float]]:
    """The bounds of a vertical axis of so many rows that holds two values, and its ticks: round numbers, each in the
    middle of a row and all the same number of rows apart."""
    span = (high - low) or abs(high) or 1.0
    found: list[tuple[bool, float, float, list[float]]] = []
    for gap in range(1 if rows < 4 else 2, max(2, min(5, rows - 1)) + 1):
        # The least step of 1, 2 or 5 times a power of ten with which both values fit.
        power = math.floor(math.log10(span * gap / rows))
        for step in (multiple * 10.0**exponent for exponent in range(power, power + 4) for multiple in (1, 2, 5)):
            bottom, height = _bottom(low, step / gap), rows * step / gap
            if bottom + height >= high:
                first, last = math.ceil(bottom / step), math.floor((bottom + height) / step)
                values = [number * step for number in range(first, last + 1)]
                found.append((len(values) < 2, height, bottom, values))
                break
    _, height, bottom, values = min(found)
    return bottom, bottom + height, values


def _bottom(low: float, row: float) -> float:
    """The lower edge of the row of height `row` that holds a value, where 0 is in the middle of one."""
    return (math.floor(low / row + 0.5) - 0.5) * row


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten between two bounds, with 2 and 5 times them where there is room, for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]
        if len(found) <= count:
            break
    # Less than a factor of two in view: round numbers serve better.
    return found if len(found) >= 2 else ticks(low, high, count)


def time_ticks(low: float, high: float, count: int) -> list[float]:
    """As `ticks`, for seconds: steps are those of a clock."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
    rough = (high - low) / max(1, count)
    step = next((s for s in steps if s >= rough), None)
    if step is None or high - low < 1:
        return ticks(low, high, count)
    first = math.ceil(low / step - 1e-9)
    return [float(k * step) for k in range(first, math.floor(high / step + 1e-9) + 1)]
