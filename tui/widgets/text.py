"""Text that changes while it is shown, in a panel or not; tables of facts; errors in full."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from textual.color import Color
from textual.containers import VerticalScroll
from textual.filter import LineFilter
from textual.widget import Widget
from textual.widgets import Static

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError
from mlxzo.core.formatting import printable

_BARS = "▁▂▃▄▅▆▇█"


def pairs_table(rows: Iterable[tuple[str, str]], *, gap: int = 2, style: str = "dim", least: int = 0) -> Table:
    """Names in a style and values below each other, `gap` cells apart; the names take at `least` so many cells."""
    table = Table.grid(padding=(0, gap, 0, 0))
    table.add_column(style=style, no_wrap=True, min_width=least or None)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, printable(value))
    return table


def wrapped_id(text: str, width: int) -> str:
    """A name or a path in lines of at most `width` cells that end behind a hyphen, an underscore or a slash."""
    lines = [""]
    for part in re.findall(r"[^-_/]*[-_/]?", text):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def one_line(text: str) -> str:
    """A text of a model or a file in one line, without control characters; ⏎ stands for the end of a line."""
    return printable(" ⏎ ".join(text.strip().splitlines()))


class Clipped:
    """A text in at most `lines` lines, beside a label; … stands for what has no room."""

    def __init__(self, text: str, lines: int, *, label: str = "", style: str = "", end: bool = False):
        """`end`: of a long text the end is shown, else the beginning."""
        self._text, self._lines, self._label, self._style, self._end = text, lines, label, style, end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(2, options.max_width - cell_len(self._label))
        for number, line in enumerate(self._fitted(console, room)):
            yield Text((self._label if not number else " " * cell_len(self._label)) + line, self._style)

    def _fitted(self, console: Console, room: int) -> list[str]:
        """The lines, each of at most `room` cells."""
        # More than can be shown, whatever its length.
        most = (self._lines + 1) * room
        text = self._text[-most:] if self._end else self._text[:most]
        found = _wrapped(text, console, room)
        if len(found) <= self._lines:
            return found
        if not self._end:
            last = found[self._lines - 1]
            while cell_len(last) >= room:
                last = last[:-1]
            return [*found[: self._lines - 1], f"{last}…"]
        while len(found := _wrapped(f"…{text}", console, room)) > self._lines:
            text = text[1:].lstrip()
        return found


def _wrapped(text: str, console: Console, room: int) -> list[str]:
    return [line.plain.rstrip() for line in Text(text).wrap(console, room)]


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as bars of eight heights in at most `width` cells, each the mean of its share of them; '' for none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    count = min(width, len(known))
    bounds = [place * len(known) // count for place in range(count + 1)]
    means = [fmean(known[first:last]) for first, last in pairwise(bounds)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1)) if span else 0] for mean in means)


def problem_text(problem: MlxzoError | events.Failed, gap: str = "\n") -> str:
    """The message of an error, its details and its fix, with `gap` between them."""
    fix = f"What to do: {problem.fix}" if problem.fix else ""
    return printable(gap.join(filter(None, (problem.message, "\n".join(problem.details), fix))))


class PrintableText(LineFilter):
    """Keeps control characters of names, files and answers from the terminal, whichever widget shows them."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [each if each.text.isprintable() else each._replace(text=_as_wide(each.text)) for each in segments]


def _as_wide(text: str) -> str:
    """Printable text that fills as many cells."""
    clean = printable(text, instead="")
    return clean + " " * (cell_len(text) - cell_len(clean))


class LiveText(Static):
    """Text that costs nothing while it stays the same, and little while its number of lines does.

    Textual lays out the whole screen when a text is replaced, which takes ten times as long as drawing the text.
    """

    def __init__(self, content: str = "", *, id: str | None = None, classes: str | None = None):
        super().__init__(content, id=id, classes=classes, markup=False)
        self._shown: object = content

    def show(self, content: RenderableType, key: object = None) -> None:
        """Replaces the text.

        Args:
            key: stands for a content that cannot be compared, such as a table.
        """
        shown = content if key is None else key
        if shown == self._shown:
            return
        self._shown = shown
        self.update(content, layout=False)
        if not self.styles.is_auto_height:
            return
        lines = self.get_content_height(self.container_size, self.app.size, self.size.width)
        if lines != self.size.height:
            self.refresh(layout=True)


class Panel(VerticalScroll, can_focus=True):
    """Text in a frame that scrolls."""

    # Containers that scroll cannot be by default.
    ALLOW_MAXIMIZE = True

    def __init__(self, *, id: str, title: str, help: str, follows: bool = False):
        """`follows`: the last line stays in view, unless the user has scrolled away from it."""
        super().__init__(id=id)
        self.border_title, self.help = title, help
        self._content = LiveText()
        self._follows, self._at_end = follows, True

    def compose(self) -> Iterable[Widget]:
        yield self._content

    def show(self, content: RenderableType, *, key: object = None) -> None:
        """Replaces the text (`key`: see `LiveText.show`)."""
        self._content.show(content, key)
        self._follow()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._at_end = new_value >= self.max_scroll_y - 1

    def on_resize(self) -> None:
        self._follow()

    def _follow(self) -> None:
        if self._follows and self._at_end:
            self.scroll_end(animate=False)
