"""Help for what has the focus: what it is, what its keys do, and what the screen and the app offer beside."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Button, Static


class HelpDialog(ModalScreen[None]):
    """Help for a widget on a screen. Opened by F1 anywhere."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "dismiss", "Close")]

    def __init__(self, screen: Screen, focused: Widget | None):
        super().__init__()
        self._about = screen
        self._focused = focused
        self._keys = _keys(screen)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog wide") as dialog:
            dialog.border_title = "Help"
            if (text := _help_of(self._focused)) is not None:
                yield Static(text, markup=False, classes="help-focused")
            if about := getattr(self._about, "help", ""):
                yield Static(about, markup=False, classes="help-screen")
            for name, rows in self._keys.items():
                yield Static(name, classes="help-heading", markup=False)
                yield Static(_table(rows))
            yield Button("Close", compact=True, variant="primary")

    def on_mount(self) -> None:
        # Not the button, which is at the end: the text begins at its top.
        self.query_one(VerticalScroll).focus()

    def on_button_pressed(self) -> None:
        self.dismiss()


def _help_of(widget: DOMNode | None) -> str | None:
    """The help of a widget, or of what it is part of."""
    while widget is not None and not isinstance(widget, Screen):
        if isinstance(text := getattr(widget, "help", None), str) and text:
            return text
        widget = widget.parent
    return None


def _keys(screen: Screen) -> dict[str, list[tuple[str, str]]]:
    """Keys and what they do, under the name of what they belong to: the widget first, the app last."""
    found: dict[str, dict[str, list[str]]] = {}
    for node, binding, enabled, tooltip in screen.active_bindings.values():
        if not enabled or not binding.description:
            continue
        name = "Everywhere" if node is screen.app else "On this screen" if node is screen else "Here"
        key = screen.app.get_key_display(binding)
        words = f"{binding.description}: {tooltip}" if tooltip else binding.description
        keys = found.setdefault(name, {}).setdefault(words, [])
        if key not in keys:
            keys.append(key)
    order = sorted(found, key=["Here", "On this screen", "Everywhere"].index)
    return {name: [(" ".join(keys), words) for words, keys in found[name].items()] for name in order}


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=12, no_wrap=True)
    table.add_column()
    for keys, words in rows:
        table.add_row(Text(keys, style="bold"), words)
    return table
