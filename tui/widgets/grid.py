"""A table that draws only the lines in view, so that a thousand rows cost no more than a screenful."""

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
    """A column: its width in cells (0: what the others leave), and from which width of the table it is shown."""

    key: str
    title: str
    width: int
    right: bool = False
    from_width: int = 0


class Grid(ScrollView, Generic[Item], can_focus=True):
    """Items as rows, under a line of titles that stays. The cursor follows its item when rows change places."""

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
        """The cursor is on another item; None where there is none."""

        grid: Grid
        item: Hashable | None

        @property
        def control(self) -> Grid:
            return self.grid

    @dataclass
    class Chosen(Message):
        """Enter, or a click on the row under the cursor."""

        grid: Grid
        item: Hashable

        @property
        def control(self) -> Grid:
            return self.grid

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
        """`cell` gives the text of an item in a column; `dim` says whether a row is drawn faint."""
        super().__init__(id=id)
        self.help = help
        self._columns, self._cell, self._dim = columns, cell, dim
        self._items: list[Item] = []
        self._cursor = 0

    @property
    def item(self) -> Item | None:
        """The item under the cursor."""
        return self._items[self._cursor] if self._items else None

    @property
    def items(self) -> Sequence[Item]:
        return self._items

    def show(self, items: Sequence[Item], *, cursor: Item | None = None) -> None:
        """Replaces the rows; the cursor goes to `cursor`, or stays on its item, or where it was."""
        wanted = self.item if cursor is None else cursor
        self._items = list(items)
        found = next((n for n, item in enumerate(self._items) if item == wanted), None)
        if found is None:
            found = min(self._cursor, max(0, len(self._items) - 1))
        self._cursor = found
        self.virtual_size = Size(0, len(self._items) + 1)
        self._into_view()
        self.refresh()
        self.post_message(self.Moved(self, self.item))

    def show_columns(self, columns: Sequence[Column]) -> None:
        """Replaces the columns."""
        self._columns = columns
        self.refresh()

    def redraw(self) -> None:
        """Draws the same items again, whose cells say something else by now."""
        self.refresh()

    # Moving

    def action_move(self, rows: int) -> None:
        place = min(max(0, self._cursor + rows), max(0, len(self._items) - 1))
        if place != self._cursor:
            self._cursor = place
            self._into_view()
            self.refresh()
            self.post_message(self.Moved(self, self.item))

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
        if row < len(self._items):
            if row == self._cursor and event.chain == 2:
                self.action_choose()
            self.action_move(row - self._cursor)

    def _into_view(self) -> None:
        # The titles cover one line of what is in view.
        height = self.content_size.height - 1
        if height > 0:
            top = round(self.scroll_target_y)
            if self._cursor < top:
                self.scroll_to(y=self._cursor, animate=False)
            elif self._cursor >= top + height:
                self.scroll_to(y=self._cursor - height + 1, animate=False)

    # Drawing

    def on_resize(self) -> None:
        self._into_view()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self.refresh()

    def _widths(self) -> list[tuple[Column, int]]:
        room = self.scrollable_content_region.width
        shown = [column for column in self._columns if room >= column.from_width]
        rest = max(4, room - sum(c.width for c in shown) - (len(shown) - 1))
        elastic = max(1, sum(c.width == 0 for c in shown))
        return [(c, c.width or rest // elastic) for c in shown]

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if y == 0 and self.content_size.height > 1:
            cells = [_fit(c.title, n, c.right) for c, n in self._widths()]
            return self._strip(cells, width, self._style("title"))
        # In a single line there is room for what is chosen, and not for titles.
        row = y - 1 + round(self.scroll_offset.y) if self.content_size.height > 1 else self._cursor
        if row >= len(self._items):
            return Strip.blank(width, self._style("row"))
        item = self._items[row]
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
    """A grid whose items are places to go to: Enter opens the one under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "Open")]


def _fit(text: str, width: int, right: bool) -> str:
    """The text in exactly `width` cells, its end cut with a sign where it is longer."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    return " " * (width - length) + text if right else text + " " * (width - length)
