"""The character cells of a chart; lines, horizontal rules and vertical moments drawn on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.segment import Segment
from rich.style import Style

from mlxzo.core.braille import BLANK, Window, band, curve

STYLES = ("text", "axis", "faint", "one", "two", "three", "four", "five", "six", "limit")
# For the lines of a comparison, which differ in colour as well.
MARKS = "●▲■◆▼✚"


@dataclass(frozen=True)
class Line:
    """A curve over non-decreasing `x`. `style`: one of `STYLES`; `marks`: a character per point, or one for all."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: str = "one"
    area: bool = False
    marks: str | Sequence[str] = ""
    end: str = ""
    """A mark for the last point."""
    band: np.ndarray | None = None
    """The standard error of each point, shaded above and below the curve."""


@dataclass(frozen=True)
class Rule:
    """A horizontal reference line with a label, drawn in free cells."""

    label: str
    y: float
    style: str = "axis"
    dash: str = "╌"
    over: bool = True
    """Whether the label may cover curves if too few cells are free."""
    short: str = ""
    """A label to use if the other does not fit."""


@dataclass(frozen=True)
class Moment:
    """A vertical line at the beginning of a phase, with its label at the top."""

    label: str
    x: float


class Canvas:
    """Cells over a window of the plane, with a character and a style each. Later drawing lies on top."""

    def __init__(self, window: Window, width: int, height: int):
        self.window, self.width, self.height = window, width, height
        self._glyphs = np.full((height, width), ord(" "), dtype=np.uint32)
        self._owners = np.zeros((height, width), dtype=np.uint8)
        self._shaded = np.zeros((height, width), dtype=bool)
        # Cells of marks and of labels of rules, which nothing covers.
        self._reserved = np.zeros((height, width), dtype=bool)

    @property
    def _free(self) -> np.ndarray:
        return (self._glyphs == ord(" ")) | self._shaded

    def row_of(self, y: float) -> int | None:
        """The row of a value, from the top; None outside the window."""
        up = float(self.window.height_of(np.array(y)))
        return min(self.height - 1, int((1 - up) * self.height)) if 0 <= up <= 1 else None

    def line(self, line: Line) -> None:
        """The curve of a line, in braille."""
        bits = curve(line.x, line.y, self.window, self.width, self.height, area=line.area)
        covered = bits > 0
        # A faint curve does not hide the faint band around it.
        around = self._shaded & covered & (line.style == "faint")
        bits[around] |= (self._glyphs[around] - BLANK).astype(bits.dtype)
        self._glyphs[covered] = BLANK + bits[covered].astype(np.uint32)
        self._owners[covered] = STYLES.index(line.style)
        self._shaded[covered] = False

    def band(self, line: Line) -> None:
        """The band of a line, on which everything else is drawn as on free cells."""
        if line.band is None or len(line.x) < 2:
            return
        bits = band(line.x, line.y - line.band, line.y + line.band, self.window, self.width, self.height)
        self._shaded |= bits > 0
        self._glyphs[self._shaded] = BLANK + bits[self._shaded].astype(np.uint32)
        self._owners[self._shaded] = STYLES.index("faint")

    def rule(self, rule: Rule, *, right: bool) -> None:
        """A dashed line in the free cells of a row. Its label goes into free cells near the right or left edge, else
        over a curve, but never over marks or another label."""
        row = self.row_of(rule.y)
        if row is None:
            return
        free = self._free[row] & ~self._reserved[row]
        self._glyphs[row, free] = ord(rule.dash)
        self._owners[row, free] = STYLES.index(rule.style)
        for words in filter(None, (rule.label, rule.short)):
            label = f" {words} "
            places = range(self.width - len(label) + 1)
            ordered = reversed(places) if right else places
            open_to = [begin for begin in ordered if not self._reserved[row, begin : begin + len(label)].any()]
            clear = [begin for begin in open_to if free[begin : begin + len(label)].all()]
            for begin in (clear or (open_to if rule.over else []))[:1]:
                self._reserved[row, begin : begin + len(label)] = True
                # The rest of a label that this one covers in part.
                while begin and chr(self._glyphs[row, begin - 1]).isalpha():
                    begin, label = begin - 1, f" {label}"
                self._write(row, begin, label, rule.style)
                return

    def moment(self, moment: Moment) -> None:
        """The line of a moment, if it lies in the window."""
        place = float(self.window.across(np.array(moment.x)))
        if 0 <= place < 1:
            self.upright(int(place * self.width), moment.label)

    def upright(self, column: int, label: str, glyph: str = "┆") -> None:
        """A vertical line in the free cells of a column, with its label at the top if it fits."""
        free = self._free[:, column]
        self._glyphs[free, column] = ord(glyph)
        self._owners[free, column] = STYLES.index("faint" if label else "text")
        # One cell more than the label, so that labels do not touch.
        room = self._glyphs[0, column : column + 2 + len(label)]
        if label and len(room) == len(label) + 2 and free[0] and (room[1:] == ord(" ")).all():
            self._write(0, column + 1, label, "axis")

    def marks(self, line: Line) -> None:
        """The marks of a line."""
        characters = list(line.marks)
        if len(characters) == 1:
            characters *= len(line.x)
        points = list(zip(line.x, line.y, characters, strict=False))
        if line.end and len(line.x):
            points.append((line.x[-1], line.y[-1], line.end))
        for x, y, character in points:
            place, row = float(self.window.across(np.array(x))), self.row_of(y)
            if row is not None and 0 <= place <= 1:
                column = min(self.width - 1, int(place * self.width))
                self._write(row, column, character, line.style)
                self._reserved[row, column] = True

    def _write(self, row: int, column: int, text: str, style: str) -> None:
        for number, character in enumerate(text):
            self._glyphs[row, column + number] = ord(character)
            self._owners[row, column + number] = STYLES.index(style)

    def segments(self, row: int, styles: Sequence[Style]) -> list[Segment]:
        """The text of a row in segments of one style; `styles` are in the order of `STYLES`."""
        text = "".join(map(chr, self._glyphs[row]))
        owners = self._owners[row]
        breaks = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), self.width]
        return [Segment(text[a:b], styles[owners[a]]) for a, b in itertools.pairwise(breaks)]
