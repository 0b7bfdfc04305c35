"""A table that draws only the visible rows, so that a thousand rows cost no more than a screenful."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Column:
    """A column: its width in cells (0: what the others leave), and the least width of the table that shows it."""

    key: str
    title: str
    width: int
    right: bool = False
    from_width: int = 0


class Grid(ScrollView, Generic[Item], can_focus=True):
    """Items as rows under a fixed line of titles. The cursor follows its item when rows are reordered."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"grid--title", "grid--row", "grid--cursor", "grid--dim"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First", show=False),
        Binding("end", "move(1000000)", "Last", show=False),
        Binding("enter", "choose", "Choose"),
    ]

    @dataclass
    class Moved(Message):
        """The item under the cursor may be another one; None in an empty grid."""

        grid: Grid
        item: Hashable | None

    @dataclass
    class Chosen(Message):
        """Enter, or a double click on a row."""

        grid: Grid
        item: Hashable

    @dataclass
    class TitleClicked(Message):
        """A click on a column's title."""

        grid: Grid
        key: str

    def __init__(
        self,
        columns: Sequence[Column],
        cell: Callable[[Item, str], str],
        *,
        id: str,
        help: str,
        dim: Callable[[Item], bool] = lambda item: False,
    ):
        """`cell` returns the text of an item in the column of a key; `dim` items are drawn faint."""
        super().__init__(id=id)
        self.help, self.columns = help, columns
        self._cell, self._dim = cell, dim
        self.items: Sequence[Item] = ()
        self._cursor = 0

    @property
    def item(self) -> Item | None:
        """The item under the cursor."""
        return self.items[self._cursor] if self.items else None

    def show(self, items: Sequence[Item], *, cursor: Item | None = None) -> None:
        """Replaces the rows; the cursor goes to `cursor`, else stays on its item, else on its row."""
        wanted = self.item if cursor is None else cursor
        self.items = tuple(items)
        self.virtual_size = Size(0, len(items) + 1)
        self._go(self.items.index(wanted) if wanted in self.items else self._cursor)

    def _go(self, row: int) -> None:
        """Moves the cursor to a row, or to the nearest one."""
        self._cursor = min(max(0, row), max(0, len(self.items) - 1))
        self._into_view()
        self.refresh()
        self.post_message(self.Moved(self, self.item))

    def action_move(self, rows: int) -> None:
        self._go(self._cursor + rows)

    def action_page(self, pages: int) -> None:
        self.action_move(pages * max(1, self.content_size.height - 2))

    def action_choose(self) -> None:
        if self.item is not None:
            self.post_message(self.Chosen(self, self.item))

    def on_click(self, event: events.Click) -> None:
        if (offset := event.get_content_offset(self)) is None:
            return
        if offset.y == 0:
            left = 0
            for column, width in self._widths():
                if left <= offset.x < left + width:
                    self.post_message(self.TitleClicked(self, column.key))
                left += width + 1
            return
        row = offset.y - 1 + round(self.scroll_offset.y)
        if row < len(self.items):
            if row == self._cursor and event.chain == 2:
                self.action_choose()
            self._go(row)

    def _into_view(self) -> None:
        # The titles cover one visible line.
        if (height := self.content_size.height - 1) > 0:
            top = min(max(self._cursor - height + 1, round(self.scroll_target_y)), self._cursor)
            if top != round(self.scroll_target_y):
                self.scroll_to(y=top, animate=False)

    def on_resize(self) -> None:
        self._into_view()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self.refresh()

    def _widths(self) -> list[tuple[Column, int]]:
        room = self.scrollable_content_region.width
        shown = [column for column in self.columns if room >= column.from_width]
        rest = max(4, room - sum(c.width for c in shown) - (len(shown) - 1))
        elastic = max(1, sum(c.width == 0 for c in shown))
        return [(c, c.width or rest // elastic) for c in shown]

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if y == 0 and self.content_size.height > 1:
            cells = [_fit(c.title, n, c.right) for c, n in self._widths()]
            return self._strip(cells, width, self._style("title"))
        # A grid of one line shows the chosen item and no titles.
        row = y - 1 + round(self.scroll_offset.y) if self.content_size.height > 1 else self._cursor
        if row >= len(self.items):
            return Strip.blank(width, self._style("row"))
        item = self.items[row]
        cells = [_fit(self._cell(item, c.key), n, c.right) for c, n in self._widths()]
        name = "cursor" if row == self._cursor else "dim" if self._dim(item) else "row"
        return self._strip(cells, width, self._style(name))

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"grid--{name}")

    @staticmethod
    def _strip(cells: Sequence[str], width: int, style: Style) -> Strip:
        return Strip([Segment(set_cell_size(" ".join(cells), width), style)], width)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.refresh(Region(0, 0, *self.size))


class Openable(Grid[Item]):
    """A grid whose items Enter opens."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "Open")]


def _fit(text: str, width: int, right: bool) -> str:
    """The text in exactly `width` cells; a longer one ends in an ellipsis."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    return " " * (width - length) + text if right else text + " " * (width - length)
