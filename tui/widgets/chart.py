"""The chart widget: zoom and pan by key and mouse, axes, and the values under the pointer."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from mlxzo.core.braille import Window, log_ticks, row_axis, ticks, time_ticks
from mlxzo.core.formatting import format_seconds

from .axis_labels import PLAIN, Scale, clock, counts
from .canvas import STYLES, Canvas, Line, Moment, Rule


class Chart(Widget, can_focus=True):
    """Curves over one horizontal axis. `show` replaces them; the view follows the data until zoomed."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"chart--{name}" for name in STYLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom in", key_display="+"),
        Binding("minus", "zoom(2.0)", "Zoom out", key_display="-"),
        Binding("left,h", "pan(-0.25)", "Pan left", key_display="←", show=False),
        Binding("right,l", "pan(0.25)", "Pan right", key_display="→", show=False),
        Binding("home,r", "reset", "Whole run", key_display="r"),
        Binding("g", "log", "Log / linear"),
        Binding("comma", "point(-1)", "Read left", key_display=",", show=False),
        Binding("full_stop", "point(1)", "Read right", key_display=".", show=False),
    ]

    def __init__(
        self,
        *,
        id: str,
        title: str,
        empty: str,
        help: str,
        scale: Scale = PLAIN,
        x_name: str = "step",
        from_zero: bool = False,
    ):
        """A chart without curves.

        Args:
            empty: the text in place of curves: their content, and when they appear.
            scale: formats the vertical axis and the readout.
            x_name: `step`, or `time` for seconds.
            from_zero: a linear vertical axis begins at 0.
        """
        super().__init__(id=id)
        self.title, self.empty, self.help, self.scale = title, empty, help, scale
        self.least_span = 0.0
        """The least vertical range, in the data's own units: changes far below it look as small as they are."""
        self._framed = ("", "")
        self._frame(title, "")
        self._x_name, self._from_zero = x_name, from_zero
        self._lines: Sequence[Line] = ()
        self._rules: Sequence[Rule] = ()
        self._moments: Sequence[Moment] = ()
        self._note = ""
        self._until: float | None = None
        self.view: tuple[float, float] | None = None
        """The visible part of the horizontal axis; None while all of it is."""
        self._logarithmic = False
        self._pointer: int | None = None
        self._dragged_from: tuple[int, tuple[float, float]] | None = None
        self._strips: list[Strip] | None = None
        self._styles: dict[str, Style] = {}
        self._windowed: Window | None = None
        # The values that the window holds.
        self._range = (0.0, 1.0)
        self._plot = (0, 0)

    def show(
        self,
        lines: Sequence[Line],
        rules: Sequence[Rule] = (),
        moments: Sequence[Moment] = (),
        note: str = "",
        until: float | None = None,
    ) -> None:
        """Draws curves, rules and moments.

        Args:
            note: stands at the lower right while no values are read off.
            until: the horizontal axis extends at least to here.
        """
        self._lines, self._rules, self._moments, self._note = lines, rules, moments, note
        self._until = until
        self._draw_again()

    def action_zoom(self, factor: float, at: float = 1.0) -> None:
        """Shows `factor` times as much of the horizontal axis; the point `at` (0 left, 1 right) stays in place."""
        if (whole := self._extent()) is None:
            return
        x0, x1 = self.view or whole
        fixed = x0 + at * (x1 - x0)
        span = max((x1 - x0) * factor, (whole[1] - whole[0]) / 2000)
        x0, x1 = max(fixed - at * span, whole[0]), min(fixed + (1 - at) * span, whole[1])
        self.view = None if (x0, x1) == whole or x1 <= x0 else (x0, x1)
        self._draw_again()

    def action_pan(self, share: float) -> None:
        """Moves a zoomed view by a share of its width."""
        if self.view is not None:
            self._move_view(self.view, share * (self.view[1] - self.view[0]))

    def _move_view(self, view: tuple[float, float], shift: float) -> None:
        """Shows `view` moved by `shift`, as far as the data go."""
        if (whole := self._extent()) is not None:
            shift = min(max(shift, whole[0] - view[0]), whole[1] - view[1])
            self.view = (view[0] + shift, view[1] + shift)
            self._draw_again()

    def action_reset(self) -> None:
        self.view = None
        self._draw_again()

    def action_log(self) -> None:
        self._logarithmic = not self._logarithmic
        self._draw_again()

    def action_point(self, direction: int) -> None:
        """Moves to the next measured point, on the left (-1) or on the right (1), at which values are read off."""
        offset, width = self._plot
        if not width or (whole := self._extent()) is None:
            return
        found = self._measured_columns(self._window(*(self.view or whole)))
        read = self._read_column()
        if read is None:
            beyond = found[-1:] if direction < 0 else found[:1]
        else:
            beyond = found[found < read][-1:] if direction < 0 else found[found > read][:1]
        if len(beyond):
            self._pointer = offset + int(beyond[0])
            self._draw_again()

    def _measured_columns(self, window: Window) -> np.ndarray:
        """The columns of the plot that hold measured points, rising."""
        width = self._plot[1]
        places = [window.across(line.x[np.isfinite(line.y)]) for line in self._lines if len(line.x)]
        across = np.concatenate(places) if places else np.empty(0)
        inside = across[(across >= 0) & (across <= 1)]
        return np.unique(np.minimum(width - 1, (inside * width).astype(int)))

    def _read_column(self) -> int | None:
        """The column with measured points that is nearest to the pointer; None if it is not on the plot."""
        offset, width = self._plot
        whole = self._extent()
        if self._pointer is None or whole is None or not offset <= self._pointer < offset + width:
            return None
        found = self._measured_columns(self._window(*(self.view or whole)))
        return int(found[np.abs(found - (self._pointer - offset)).argmin()]) if len(found) else None

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_zoom(0.8, self._place(event))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_zoom(1.25, self._place(event))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        if self.view is not None:
            self._dragged_from = (event.x, self.view)
            self.capture_mouse()

    def on_mouse_up(self) -> None:
        if self._dragged_from is not None:
            self._dragged_from = None
            self.release_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self._pointer = event.x - self.gutter.left
        if self._dragged_from is not None:
            begin, view = self._dragged_from
            self._move_view(view, (begin - event.x) / max(1, self._plot[1]) * (view[1] - view[0]))
        else:
            self._draw_again()

    def on_leave(self) -> None:
        self._pointer = None
        self._draw_again()

    def on_click(self, event: events.Click) -> None:
        if event.chain == 2:
            self.action_reset()

    def _place(self, event: events.MouseEvent) -> float:
        offset, width = self._plot
        return min(1.0, max(0.0, (event.x - self.gutter.left - offset) / max(1, width)))

    def _draw_again(self) -> None:
        """Draws the chart and refreshes only the rows that changed."""
        before, size = self._strips, self.content_size
        self._strips = self._windowed = None
        self._caption()
        if before is None or len(before) != size.height:
            self.refresh()
            return
        self._strips = self._draw(*size)
        changed = [
            Region(0, y, size.width, 1)
            for y, (old, new) in enumerate(zip(before, self._strips, strict=True))
            if old != new
        ]
        if changed:
            self.refresh(*changed)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        if any(self.get_component_rich_style(f"chart--{name}") != style for name, style in self._styles.items()):
            self._strips = None
            self._styles.clear()

    def on_resize(self) -> None:
        # A chart that comes into view again may have been drawn in this size.
        if self._strips is None or (len(self._strips), self._strips[0].cell_length) != self.content_size[::-1]:
            self._strips = None
            self._draw_again()

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            self._strips = self._draw(self.content_size.width, self.content_size.height)
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.content_size.width, self._style("text"))

    def style_of(self, name: str) -> Style:
        """The style of a line, for its label in a legend."""
        return Style(color=self._style(name).color)

    def _style(self, name: str) -> Style:
        # Textual computes it again after every refresh, which takes longer than drawing.
        if name not in self._styles:
            self._styles[name] = self.get_component_rich_style(f"chart--{name}")
        return self._styles[name]

    def _extent(self) -> tuple[float, float] | None:
        """The horizontal range of all lines; None where they have no points."""
        ends = [(line.x[0], line.x[-1]) for line in self._lines if len(line.x)]
        if not ends:
            return None
        low, high = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
        high = max(high, low if self._until is None else self._until)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def _draw(self, width: int, height: int) -> list[Strip]:
        whole = self._extent()
        if whole is None or height < 3 or width < 16:
            return self._draw_empty(width, height)
        rows = height - 1
        axis = self._style("axis")
        window = self._window(*(self.view or whole))
        if window.log:
            values = log_ticks(window.y0, window.y1, max(2, rows // (2 if rows < 12 else 3)))
        else:
            *_, values = row_axis(*self._range, rows)
        labels = self.scale.labels(values)
        # The name of the horizontal axis stands below these labels.
        margin = max(map(len, (*labels, self._axis_name))) + 1
        columns = width - margin
        if columns < 8:
            return self._draw_empty(width, height)
        self._plot = (margin, columns)
        canvas = Canvas(window, columns, rows)
        self._draw_lines(canvas)
        styles = [self._style(name) for name in STYLES]
        left = [" " * margin] * rows
        for value, label in zip(values, labels, strict=True):
            if (row := canvas.row_of(value)) is not None:
                left[row] = f"{label:>{margin - 1}} "
        strips = [Strip([Segment(left[row], axis), *canvas.segments(row, styles)], width) for row in range(rows)]
        strips.append(self._x_axis(window, margin, columns))
        return strips

    def _window(self, x0: float, x1: float) -> Window:
        """The window over a horizontal range that holds all curves and rules in it; computed once per drawing."""
        if self._windowed is None:
            self._windowed = self._find_window(x0, x1)
        return self._windowed

    def _find_window(self, x0: float, x1: float) -> Window:
        found: list[float] = [rule.y for rule in self._rules]
        for line in self._lines:
            first, last = np.searchsorted(line.x, (x0, x1))
            # One more point on either side: the curve crosses the edge on its way there.
            part = slice(max(0, first - 1), last + 1)
            error = np.zeros(1) if line.band is None else line.band[part]
            edges = (line.y[part] - error, line.y[part] + error)
            for seen in edges:
                seen = seen[np.isfinite(seen)]
                if len(seen):
                    found += [float(seen.min()), float(seen.max())]
        log = self._logarithmic and all(value > 0 for value in found)
        low, high = min(found, default=0.0), max(found, default=1.0)
        if log:
            self._range = low, high
            return Window(x0, x1, low / 1.05, high * 1.05, True)
        if self._from_zero and low >= 0:
            low = 0.0
        missing = max(0.0, self.least_span - (high - low))
        low, high = low - missing / 2, high + missing / 2
        self._range = low, high
        return Window(x0, x1, *row_axis(low, high, max(2, self.content_size.height - 1))[:2])

    def _draw_lines(self, canvas: Canvas) -> None:
        for line in self._lines:
            canvas.band(line)
        for line in self._lines:
            canvas.line(line)
        for moment in self._moments:
            canvas.moment(moment)
        for line in self._lines:
            canvas.marks(line)
        # Last, so that their labels avoid the marks.
        for number, rule in enumerate(sorted(self._rules, key=lambda rule: -rule.y)):
            canvas.rule(rule, right=number % 2 == 0)
        if (read := self._read_column()) is not None:
            canvas.upright(read, "", "┊")

    @property
    def _axis_name(self) -> str:
        """The unit of the horizontal axis, unless its labels have units."""
        return "" if self._x_name == "time" else self._x_name

    def _x_axis(self, window: Window, margin: int, columns: int) -> Strip:
        line = [" "] * columns
        for begin, label in self._x_labels(window, columns):
            line[begin : begin + len(label)] = label
        name = f"{self._axis_name:>{margin - 1}} "
        return Strip([Segment(name + "".join(line), self._style("axis"))], margin + columns)

    def _x_labels(self, window: Window, columns: int) -> list[tuple[int, str]]:
        """Labels of the horizontal axis with their first columns: as many as stand apart, evenly spaced."""
        for count in range(max(2, columns // 8), 0, -1):
            if self._x_name == "time":
                values = time_ticks(window.x0, window.x1, count)
                labels = clock(values)
            else:
                values = ticks(window.x0, window.x1, count, whole=True)
                labels = counts(values)
            places = [round(float(window.across(np.array(value))) * columns) for value in values]
            placed = [
                (min(max(0, place - len(label) // 2), columns - len(label)), label)
                for place, label in zip(places, labels, strict=True)
            ]
            if all(a + len(label) + 2 <= b for (a, label), (b, _) in itertools.pairwise(placed)):
                return placed
        return []

    def _caption(self) -> None:
        """Writes scale and view beside the title, and the values under the pointer, or else the note, below."""
        facts = [self.title]
        if (whole := self._extent()) is None:
            self._frame(self.title, "")
            return
        window = self._window(*(self.view or whole))
        if self._logarithmic:
            facts.append("log" if window.log else "log needs values above 0")
        if self.view is not None:
            facts.append("zoomed (r: whole run)")
        self._frame(" · ".join(facts), self._readout(window) or self._note)

    def _frame(self, title: str, subtitle: str) -> None:
        """Sets title and subtitle if they changed: that draws the whole frame again."""
        if (title, subtitle) != self._framed:
            self._framed = (title, subtitle)
            self.border_title, self.border_subtitle = title, subtitle

    def _readout(self, window: Window) -> str:
        """The measured points in the column at which values are read off."""
        if (read := self._read_column()) is None:
            return ""
        where, found = "", []
        for line in self._lines:
            across = window.across(line.x) * self._plot[1]
            here = np.flatnonzero((np.minimum(self._plot[1] - 1, across.astype(int)) == read) & np.isfinite(line.y))
            if len(here):
                last = int(here[-1])
                x = float(line.x[last])
                where = format_seconds(x) if self._x_name == "time" else f"step {round(x):,}"
                found.append(f"{line.label} {self.scale.value(float(line.y[last]))}")
        return " · ".join([where, *found])

    def _draw_empty(self, width: int, height: int) -> list[Strip]:
        style = self._style("axis")
        lines = textwrap.wrap(self.empty, max(8, width - 4))[:height]
        top = (height - len(lines)) // 2
        padded = [""] * top + lines + [""] * (height - top - len(lines))
        return [Strip([Segment(line.center(width)[:width], style)], width) for line in padded]
