"""Text on the screen that changes while it is watched: drawn where it says something else, laid out where it grows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from rich.console import RenderableType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static


class Words(Static):
    """Text that costs nothing while it stays the same, and little while it takes as many lines as before.

    Textual lays out the whole screen for a text that is replaced, which takes ten times as long as drawing the text.
    """

    def __init__(self, content: str = "", *, id: str | None = None, classes: str | None = None):
        super().__init__(content, id=id, classes=classes, markup=False)
        self._shown: Hashable = content

    def show(self, content: RenderableType, key: Hashable = None) -> None:
        """Replaces the text.

        Args:
            key: what tells contents apart that do not compare, such as tables.
        """
        shown = content if key is None else key
        if shown == self._shown:
            return
        self._shown = shown
        self.update(content, layout=False)
        lines = self.get_content_height(self.container_size, self.app.size, self.size.width)
        if lines != self.size.height:
            self.refresh(layout=True)


class Panel(VerticalScroll, can_focus=True):
    """Text in a frame that scrolls."""

    def __init__(self, *, id: str, title: str, help: str):
        super().__init__(id=id)
        self.border_title, self.help = title, help
        self._content = Words()

    def compose(self) -> Iterable[Widget]:
        yield self._content

    def show(self, content: RenderableType, *, key: Hashable = None, to_end: bool = False) -> None:
        """Replaces the text (`key`: see `Words.show`); `to_end` keeps the last line in view if it was."""
        at_end = self.scroll_offset.y >= self.max_scroll_y - 1
        self._content.show(content, key)
        if to_end and at_end:
            self.scroll_end(animate=False)
