"""The line of keys at the bottom: those that work now; a click runs the same action.

Textual's own footer creates a widget for every key whenever the focus moves, which takes longer than the rest of a key
press. This one draws a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget


def described_bindings(screen: Screen) -> Iterator[tuple[DOMNode, Binding, str]]:
    """The keys that work now and have a description: the node of the action, the binding, its tooltip."""
    for node, binding, enabled, tooltip in screen.active_bindings.values():
        if enabled and binding.description:
            yield node, binding, tooltip


@dataclass(frozen=True)
class Item:
    """A key of the line: the node of its action, the key as bound and as displayed, and its label."""

    node: DOMNode
    action: str
    key: str
    display: str
    label: str

    @property
    def width(self) -> int:
        """Cells, the spaces around it included."""
        return cell_len(self.display) + cell_len(self.label) + 3


class Keys(Widget):
    """As many keys with their labels as fit, in the order of their bindings: the most important first.

    Keys that work everywhere come last; the one for help shows how many were left out.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--label"}

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen) -> None:
        self.refresh()

    def _shown(self) -> list[Item]:
        """The keys that fit."""
        found: dict[str, Item] = {}
        for node, binding, _ in described_bindings(self.screen):
            offers = getattr(self.screen, "offers", None)
            if binding.show and (offers is None or offers(binding.action)):
                display = self.app.get_key_display(binding)
                found.setdefault(binding.action, Item(node, binding.action, binding.key, display, binding.description))
        # Enter first; then the screen's actions, before those of a chart, which the mouse has as well.
        order: dict[DOMNode, int] = {self.screen: 1, self.app: 3}
        items = sorted(found.values(), key=lambda item: 0 if item.key == "enter" else order.get(item.node, 2))
        # Help and the palette lead to all others: they stay in view where the line is short.
        always = [item for item in items if item.action in ("help", "command_palette")]
        others = [item for item in items if item not in always]
        room = self.content_size.width - sum(item.width for item in always)
        if sum(item.width for item in others) <= room:
            return others + always
        room -= len(_more(len(others)))
        shown = []
        for item in others:
            if item.width > room:
                break
            room -= item.width
            shown.append(item)
        left_out = _more(len(others) - len(shown))
        return shown + [
            replace(item, label=item.label + left_out) if item.action == "help" else item for item in always
        ]

    def render_line(self, y: int) -> Strip:
        key_style, label_style = (self.get_component_rich_style(f"keys--{name}") for name in ("key", "label"))
        segments = []
        for item in self._shown():
            segments += [Segment(f" {item.display}", key_style), Segment(f" {item.label} ", label_style)]
        return Strip(segments).adjust_cell_length(self.content_size.width, self.rich_style)

    async def on_click(self, event: events.Click) -> None:
        left = 0
        for item in self._shown():
            if left <= event.x < left + item.width:
                await self.app.run_action(item.action, item.node)
                return
            left += item.width


def _more(count: int) -> str:
    return f" +{count}"
