"""The line of keys at the bottom: those that do something now, each to be clicked as well.

Textual's own footer makes a widget for every key whenever the focus moves, which takes longer than the rest of a key
press. This one draws a line.
"""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget


class Keys(Widget):
    """Keys and what they do, as many as fit; the last ones are those that work everywhere."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--words"}

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen) -> None:
        self.refresh()

    def _shown(self) -> list[tuple[DOMNode, Binding, str]]:
        """The bindings in view with the node they belong to and the key as it is written."""
        found: dict[str, tuple[DOMNode, Binding, str]] = {}
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            if binding.show and enabled and binding.description:
                found.setdefault(binding.action, (node, binding, self.app.get_key_display(binding)))
        # Help and commands lead to all the others: they stay in view where the line is short.
        last = [item for item in found.values() if item[0] is self.app]
        # What is done to a run comes before how a chart is looked at, which the mouse does by itself.
        first = [item for item in found.values() if item[0] is self.screen]
        first += [item for item in found.values() if item[0] not in (self.screen, self.app)]
        room = self.content_size.width - sum(map(_width, last))
        fitting = []
        for item in first:
            room -= _width(item)
            if room >= 0:
                fitting.append(item)
        return fitting + last

    def render_line(self, y: int) -> Strip:
        key_style, words_style = (self.get_component_rich_style(f"keys--{name}") for name in ("key", "words"))
        segments = []
        for _, binding, key in self._shown():
            segments += [Segment(f" {key}", key_style), Segment(f" {binding.description} ", words_style)]
        return Strip(segments).adjust_cell_length(self.content_size.width, self.rich_style)

    async def on_click(self, event: events.Click) -> None:
        left = 0
        for item in self._shown():
            if left <= event.x < left + _width(item):
                node, binding, _ = item
                await self.app.run_action(binding.action, node)
                return
            left += _width(item)


def _width(item: tuple[DOMNode, Binding, str]) -> int:
    return cell_len(item[2]) + cell_len(item[1].description) + 3
