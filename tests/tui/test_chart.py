"""A chart's axes, what it shades, and the values it reads off."""

import itertools

import numpy as np
import pytest
from rich.style import Style
from textual.app import App

from mlxzo.core.braille import Window
from tui.app import MlxzoApp
from tui.widgets.axis_labels import PERCENT, clock
from tui.widgets.canvas import STYLES, Canvas, Line, Rule
from tui.widgets.chart import Chart

from .driving import drive, wait_for


@pytest.mark.parametrize(
    ("seconds", "labels"),
    [
        ([0, 30, 60, 90], ["0 s", "30 s", "60 s", "90 s"]),
        ([0, 60, 120], ["0 min", "1 min", "2 min"]),
        ([3600, 5400, 7200], ["1:00 h", "1:30 h", "2:00 h"]),
        ([0, 3600, 7200], ["0 h", "1 h", "2 h"]),
        ([600, 630], ["10:00 min", "10:30 min"]),
        ([0.0, 0.5], ["0 s", "0.5 s"]),
    ],
)
def test_times_of_an_axis_have_one_format(seconds, labels):
    assert clock(seconds) == labels


def read_off(scenario, size=(60, 14), **options):
    """Plays a scenario on an app of one chart."""
    chart = Chart(id="chart", title="Accuracy", empty="", help="", **options)

    class Alone(App):
        CSS = "Chart { border: round white; padding: 0 1; }"

        def compose(self):
            yield chart

    async def play(pilot):
        chart.focus()
        await scenario(pilot, chart)

    drive(Alone(), play, size)


def text_of(chart):
    return [strip.text for strip in chart._strips]


def test_only_measured_points_are_read_off_by_mouse_and_by_key():
    """Between two evaluations the step under the pointer stood beside the value of another."""

    async def scenario(pilot, chart):
        chart.show([Line("accuracy", np.array([0.0, 50.0, 100.0]), np.array([0.5, 0.6, 0.7]), marks="●")])
        await wait_for(pilot, "100")
        await pilot.hover(chart, (chart.size.width // 2 + 9, 4))
        await wait_for(pilot, lambda: chart.border_subtitle == "step 50 · accuracy 60.0 %")
        # The line stands at the point, not under the pointer.
        assert text_of(chart)[0].index("┊") == text_of(chart)[-2].rindex("┊")
        rows = [row for row in text_of(chart) if "●" in row]
        assert text_of(chart)[0].index("┊") == rows[1].index("●")
        await pilot.press("full_stop")
        await wait_for(pilot, lambda: chart.border_subtitle == "step 100 · accuracy 70.0 %")
        await pilot.press("comma", "comma")
        await wait_for(pilot, lambda: chart.border_subtitle == "step 0 · accuracy 50.0 %")

    read_off(scenario, scale=PERCENT)


def test_a_change_far_below_the_standard_error_does_not_fill_the_axis():
    async def scenario(pilot, chart):
        chart.least_span = 0.1
        chart.show([Line("accuracy", np.array([0.0, 9.0]), np.array([0.74, 0.742]))])
        window = chart._window(0.0, 9.0)
        assert window.y1 - window.y0 >= 0.1
        # A band takes its room, and does not hide the line of the model before training.
        line = Line("accuracy", np.array([0.0, 9.0]), np.array([0.5, 0.7]), band=np.array([0.05, 0.05]))
        chart.show([line], [Rule("zero-shot 50.0 %", 0.5)])
        window = chart._window(0.0, 9.0)
        assert window.y0 <= 0.45 and window.y1 >= 0.75
        await wait_for(pilot, "zero-shot 50.0 %")
        assert any("╌╌" in row for row in text_of(chart))

    read_off(scenario, scale=PERCENT)


def test_a_faint_curve_does_not_hide_the_faint_band_below_it():
    def row(*lines):
        canvas = Canvas(Window(0.0, 9.0, 0.0, 1.0), 20, 6)
        for line in lines:
            canvas.band(line)
        for line in lines:
            canvas.line(line)
        return "".join(segment.text for segment in canvas.segments(4, [Style()] * len(STYLES)))

    x = np.array([0.0, 9.0])
    mean = Line("mean", x, np.array([0.5, 0.5]), "one", band=np.array([0.4, 0.4]))
    every = Line("step", x, np.array([0.2, 0.2]), "faint")
    band, curve, both = row(mean), row(every), row(every, mean)
    # The dots of a braille character are bits of its number.
    assert [ord(a) | ord(b) for a, b in zip(band, curve, strict=True)] == list(map(ord, both))
    assert both not in (band, curve)
    # A bright curve stands out.
    assert row(Line("step", x, every.y, "two"), mean) == curve


@pytest.mark.parametrize("size", [(34, 8), (60, 14), (150, 40)])
def test_ticks_are_evenly_spaced_and_the_unit_of_steps_is_named(size):
    async def scenario(pilot, chart):
        chart.show([Line("loss", np.arange(1.0, 1238.0), np.linspace(2.3, 0.4, 1237))])
        await wait_for(pilot, "step")
        *rows, axis = text_of(chart)
        labelled = [number for number, row in enumerate(rows) if row[:4].strip()]
        assert len(labelled) > 1 and len({b - a for a, b in itertools.pairwise(labelled)}) <= 1
        name, *labels = axis.split()
        values = [float(label.removesuffix("k")) for label in labels]
        assert name == "step" and len(values) > 1 and len({b - a for a, b in itertools.pairwise(values)}) <= 1

    read_off(scenario, size)


def test_a_chart_takes_the_colours_of_a_new_theme(make_run, root):
    async def scenario(pilot):
        await wait_for(pilot, "1 Loss")
        chart = pilot.app.screen.query_one("#loss", Chart)
        await wait_for(pilot, lambda: bool(chart._strips))
        before = _colours(chart)
        pilot.app.theme = "mlxzo-light"
        await wait_for(pilot, lambda: chart._strips is not None and not before & _colours(chart))

    drive(MlxzoApp(root=str(root), run=make_run()), scenario)


def _colours(chart):
    return {segment.style.color for strip in chart._strips for segment in strip if segment.style}
