"""The line of keys at the bottom: those that do something now, each to be clicked as well.

Textual's own footer makes a widget for every key whenever the focus moves, which takes longer than the rest of a key
press. This one draws a line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.dom import DOMNode
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget


@dataclass(frozen=True)
class Item:
    """A key of the line: the node its action belongs to, the key as it is bound and as it is written, and its words."""

    node: DOMNode
    action: str
    key: str
    written: str
    words: str

    @property
    def width(self) -> int:
        """Cells that it takes, the spaces around it included."""
        return cell_len(self.written) + cell_len(self.words) + 3


class Keys(Widget):
    """Keys and what they do, as many as fit, in the order of their bindings, which is that of their weight.

    Those that work everywhere come last; the one for help says how many others there were no room for.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--words"}

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen) -> None:
        self.refresh()

    def _shown(self) -> list[Item]:
        """What there is room for."""
        found: dict[str, Item] = {}
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            if binding.show and enabled and binding.description:
                written = self.app.get_key_display(binding)
                found.setdefault(binding.action, Item(node, binding.action, binding.key, written, binding.description))
        # What Enter does comes first. What is done to a run comes before how a chart is looked at, which the mouse does
        # by itself.
        places = {self.screen: 1, self.app: 3}
        items = sorted(found.values(), key=lambda item: 0 if item.key == "enter" else places.get(item.node, 2))
        # Help and commands lead to all the others: they stay in view where the line is short.
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
            replace(item, words=item.words + left_out) if item.action == "help" else item for item in always
        ]

    def render_line(self, y: int) -> Strip:
        key_style, words_style = (self.get_component_rich_style(f"keys--{name}") for name in ("key", "words"))
        segments = []
        for item in self._shown():
            segments += [Segment(f" {item.written}", key_style), Segment(f" {item.words} ", words_style)]
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
