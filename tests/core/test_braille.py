"""Curves in braille: no spike is lost, lines have no gaps, and the cost does not grow with the run."""

import itertools

import numpy as np
import pytest

from mlxzo.core.braille import Window, band, curve, log_ticks, row_axis, ticks, time_ticks


def dots(bits):
    """Braille bits [H, W] as dots [4 H, 2 W], by the Unicode chart of braille patterns."""
    height, width = bits.shape
    found = np.zeros((4 * height, 2 * width), dtype=bool)
    for bit, (row, column) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
        found[row::4, column::2] = bits >> bit & 1
    return found


def test_one_spike_among_twenty_thousand_points_is_drawn():
    x, y = np.arange(20_000.0), np.zeros(20_000)
    y[12_345] = 1.0
    drawn = dots(curve(x, y, Window(0, 19_999, 0, 1), 60, 10))
    assert drawn[0].sum() == 1 and np.flatnonzero(drawn[0]) == int(12_345 / 19_999 * 120)
    assert drawn[-1].all()


@pytest.mark.parametrize("points", [2, 5, 3000])
def test_a_line_has_no_gap_from_the_first_point_to_the_last(points):
    x = np.linspace(0, 1, points)
    drawn = dots(curve(x, np.sin(6 * x), Window(0, 1, -1, 1), 40, 8))
    rows = [np.flatnonzero(column) for column in drawn.T]
    assert all(len(row) for row in rows)
    for left, right in itertools.pairwise(rows):
        # Neighbouring columns touch, and a column has no hole.
        assert left.min() <= right.max() + 1 and right.min() <= left.max() + 1
        assert len(left) == left.max() - left.min() + 1


def test_an_area_reaches_the_bottom_and_a_value_that_is_not_finite_is_passed_over():
    drawn = dots(curve(np.arange(4.0), np.array([1.0, np.nan, 1.0, 1.0]), Window(0, 3, 0, 2), 10, 4, area=True))
    assert drawn[8:].all() and not drawn[:7].any()


def test_on_a_logarithmic_axis_equal_ratios_are_equal_distances():
    up = Window(0, 1, 0.01, 100, True).height_of(np.array([0.01, 1.0, 100.0, -1.0]))
    assert np.allclose(up[:3], [0, 0.5, 1]) and np.isnan(up[3])


def test_ticks_are_round_and_inside():
    assert ticks(0.13, 0.97, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(0, 3, 10, whole=True) == [0, 1, 2, 3]
    assert log_ticks(0.05, 20, 4) == pytest.approx([0.1, 1, 10])
    assert time_ticks(0, 300, 5) == [0, 60, 120, 180, 240, 300]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 9e8), (0.5, 0.76), (-3.2, 1.5), (0.41, 0.41), (1e-4, 3e-4), (0.0, 0.0)]
)
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 9, 14, 40])
def test_ticks_of_a_vertical_axis_are_the_same_number_of_rows_apart(low, high, rows):
    bottom, top, values = row_axis(low, high, rows)
    assert bottom <= low and high <= top and len(values) >= (2 if rows > 2 else 1)
    places = [(value - bottom) / (top - bottom) * rows - 0.5 for value in values]
    assert places == pytest.approx([round(place) for place in places], abs=1e-6)
    gaps = {round(b) - round(a) for a, b in itertools.pairwise(places)}
    assert len(gaps) <= 1 and all(gap <= 5 for gap in gaps)


def test_a_band_lies_between_its_edges_and_lets_the_ground_be_seen():
    x = np.array([0.0, 1.0])
    drawn = dots(band(x, np.array([0.25, 0.25]), np.array([0.75, 0.75]), Window(0, 1, 0, 1), 10, 4))
    rows = np.flatnonzero(drawn.any(axis=1))
    assert (rows.min(), rows.max()) == (4, 11) and drawn[4:12].mean() == 0.5
