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

from mlxzo.memory.components import Component, sum_bytes

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
    COMPONENT_CLASSES: ClassVar[set[str]] = {"slider--below", "slider--above", "slider--knob", "slider--ends"}
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
        below, above, mark = (self.get_component_rich_style(f"slider--{n}") for n in ("below", "above", "knob"))
        if y:
            least, most = f"{self._sizes[0] / 1e6:.0f} MB", "no cap"
            ends = self.get_component_rich_style("slider--ends")
            return Strip([Segment(least + most.rjust(width - len(least)), ends)], width)
        knob = round(self.place / len(self._sizes) * (width - 1))
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


# The fill and the colour of each component, the same in every plan; the fills differ without colour as well.
_MARKS = {
    "weights": ("█", "one"),
    "activations": ("▓", "two"),
    "runtime": ("▒", "three"),
    "activation cache": ("░", "four"),
    "gradients": ("▚", "five"),
    "optimiser state": ("▤", "six"),
    "adapters": ("▦", "one"),
    "attention": ("▩", "two"),
    "logits": ("▚", "three"),
    "transient": ("▤", "four"),
    "keys and values": ("▦", "five"),
    "buffer cache": ("▩", "six"),
    "tokenizer": ("▓", "one"),
    "saving": ("▒", "two"),
    "heap": ("█", "three"),
}
_OTHER = "other"
_COLOURS = ("one", "two", "three", "four", "five", "six")
# Components below this share of the footprint are shown as one.
_SMALL = 0.02


def with_small_ones_merged(parts: Sequence[Component]) -> list[Component]:
    """The components, the smallest of them as one that is named `other`; their sum stays the same."""
    least = _SMALL * sum_bytes(parts)
    small = [part for part in parts if part.bytes < least]
    if len(small) < 2:
        return list(parts)
    why = ", ".join(part.name for part in small)
    return [*(part for part in parts if part.bytes >= least), Component(_OTHER, sum_bytes(small), why)]


def _mark(name: str) -> tuple[str, str]:
    return _MARKS.get(name, ("·", "other"))


class PeakBar(Widget):
    """Predicted memory by component as one bar, with the cap as a vertical line."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"peak--{name}" for name in (*_COLOURS, "other", "free", "cap")}

    def __init__(self, *, id: str):
        super().__init__(id=id)
        self._parts: Sequence[Component] = ()
        self._cap: int | None = None

    def show(self, parts: Sequence[Component], cap_bytes: int | None) -> None:
        """The components, and the cap in bytes."""
        self._parts, self._cap = parts, cap_bytes
        self.refresh()

    def mark(self, part: Component) -> Text:
        """The mark of a component in a legend."""
        fill, colour = _mark(part.name)
        return Text(fill, Style(color=self.get_component_rich_style(f"peak--{colour}").color))

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        whole = max(sum_bytes(self._parts), self._cap or 0) * 1.02
        if not whole:
            return Strip.blank(width, self.rich_style)
        cells: list[tuple[str, str]] = []
        done = 0
        for part in self._parts:
            done += part.bytes
            upto = round(done / whole * width)
            cells += [_mark(part.name)] * (upto - len(cells))
        cells += [(" ", "free")] * (width - len(cells))
        if self._cap is not None:
            at = min(width - 1, round(self._cap / whole * width))
            cells[at] = ("┃", "cap")
        styles = {name: self.get_component_rich_style(f"peak--{name}") for name in {name for _, name in cells}}
        return Strip([Segment(character, styles[name]) for character, name in cells], width)
