"""The memory cap: a slider over round sizes, and a bar of the predicted memory against the cap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

_SMALLEST = 256 * 10**6
_STEPS = 48


def round_sizes(total_bytes: int) -> list[int]:
    """Sizes in bytes from 256 MB to the machine's memory, logarithmically spaced, rounded to two digits and 10 MB."""
    ratio = max(total_bytes, 2 * _SMALLEST) / _SMALLEST
    sizes = [_SMALLEST * ratio ** (n / (_STEPS - 1)) for n in range(_STEPS)]
    rounded = []
    for size in sizes:
        unit = 10 ** max(7, math.floor(math.log10(size)) - 1)
        rounded.append(int(round(size / unit) * unit))
    return sorted({*rounded[:-1], rounded[-1]})


class CapSlider(Widget, can_focus=True):
    """A slider whose right end stands for no cap."""

    help = (
        "Memory cap: the most memory that the run may take. The run is fitted to it before it starts (smaller "
        "micro-batches, gradient checkpointing) and held to it while it runs. Left and right move it; the right end is "
        "no cap. The field below takes exact sizes such as 900MB or 3.5GB."
    )
    COMPONENT_CLASSES: ClassVar[set[str]] = {"slider--below", "slider--above", "slider--knob"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h,minus", "move(-1)", "Less", key_display="←"),
        Binding("right,l,plus", "move(1)", "More", key_display="→"),
        Binding("pagedown", "move(-6)", "Much less", show=False),
        Binding("pageup", "move(6)", "Much more", show=False),
        Binding("home", "move(-1000)", "Least", show=False),
        Binding("end", "move(1000)", "No cap", show=False),
    ]

    place: reactive[int] = reactive(_STEPS)

    @dataclass
    class Changed(Message):
        """Moved by the user; `bytes` is None for no cap."""

        slider: CapSlider
        bytes: int | None

    def __init__(self, total_bytes: int, *, id: str):
        super().__init__(id=id)
        self._sizes = round_sizes(total_bytes)
        self.set_reactive(CapSlider.place, len(self._sizes))

    def show(self, cap_bytes: int | None) -> None:
        """Moves to the size nearest to a cap."""
        if cap_bytes is None:
            self.place = len(self._sizes)
        else:
            near = [abs(math.log(size / max(1, cap_bytes))) for size in self._sizes]
            self.place = near.index(min(near))

    def action_move(self, steps: int) -> None:
        self._go(self.place + steps)

    def _go(self, place: int) -> None:
        place = min(max(0, place), len(self._sizes))
        if place != self.place:
            self.place = place
            self.post_message(self.Changed(self, self._sizes[place] if place < len(self._sizes) else None))

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        knob = round(self.place / len(self._sizes) * (width - 1))
        below, above, mark = (self.get_component_rich_style(f"slider--{n}") for n in ("below", "above", "knob"))
        return Strip([Segment("━" * knob, below), Segment("●", mark), Segment("─" * (width - knob - 1), above)], width)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self.capture_mouse()
        self._go_to(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self.app.mouse_captured is self:
            self._go_to(event)

    def on_mouse_up(self) -> None:
        self.release_mouse()

    def _go_to(self, event: events.MouseEvent) -> None:
        share = (event.x - self.gutter.left) / max(1, self.content_size.width - 1)
        self._go(round(share * len(self._sizes)))


# Fills and colours of the components, in order; the fills differ without colour as well.
FILLS = ("█", "▓", "▒", "░", "▚", "▤", "▦", "▩")
_COLOURS = ("one", "two", "three", "four", "five", "six")


class PeakBar(Widget):
    """Predicted memory by component as one bar, with the cap as a vertical line."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"peak--{name}" for name in (*_COLOURS, "free", "cap", "over")}

    def __init__(self, *, id: str):
        super().__init__(id=id)
        self._parts: Sequence[int] = ()
        self._cap: int | None = None

    def show(self, parts: Sequence[int], cap_bytes: int | None) -> None:
        """Bytes of each component, and the cap."""
        self._parts, self._cap = parts, cap_bytes
        self.refresh()

    def mark(self, number: int) -> Text:
        """The mark of a component in a legend."""
        colour = self.get_component_rich_style(f"peak--{_COLOURS[number % len(_COLOURS)]}").color
        return Text(FILLS[number % len(FILLS)], Style(color=colour))

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        total = sum(self._parts)
        whole = max(total, self._cap or 0) * 1.02
        if not whole:
            return Strip.blank(width, self.rich_style)
        cells: list[tuple[str, str]] = []
        done = 0
        for number, part in enumerate(self._parts):
            done += part
            upto = round(done / whole * width)
            cells += [(FILLS[number % len(FILLS)], _COLOURS[number % len(_COLOURS)])] * (upto - len(cells))
        cells += [("·", "free")] * (width - len(cells))
        if self._cap is not None:
            at = min(width - 1, round(self._cap / whole * width))
            cells[at] = ("┃", "cap")
        styles = {name: self.get_component_rich_style(f"peak--{name}") for name in {name for _, name in cells}}
        return Strip([Segment(character, styles[name]) for character, name in cells], width)
