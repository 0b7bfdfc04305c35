"""Help: the focused widget, the screen, and the keys of both and of the app."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Button, Static

from ..widgets.keys import described_bindings
from ..widgets.text import pairs_table
from .page import help_of


class HelpDialog(ModalScreen[None]):
    """Help for a widget on a screen; F1 opens it anywhere, `?` outside of a field."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,question_mark,q", "dismiss", "Close")]

    def __init__(self, screen: Screen, focused: Widget | None):
        super().__init__()
        self._about = screen
        self._focused = focused
        self._keys = _keys(screen)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog wide") as dialog:
            dialog.border_title = "Help"
            if text := help_of(self._focused):
                yield Static(text, markup=False, classes="help-focused")
            if about := getattr(self._about, "help", ""):
                yield Static(about, markup=False, classes="help-screen")
            for name, rows in self._keys.items():
                yield Static(name, classes="help-heading", markup=False)
                yield Static(pairs_table(rows, style="bold", least=12))
            yield Button("Close", compact=True, variant="primary")

    def on_mount(self) -> None:
        # Not the button, which would scroll the text to its end.
        self.query_one(VerticalScroll).focus()

    def on_button_pressed(self) -> None:
        self.dismiss()


def _keys(screen: Screen) -> dict[str, list[tuple[str, str]]]:
    """Keys and their descriptions by heading: the widget first, the app last."""
    found: dict[str, dict[str, list[str]]] = {}
    for node, binding, tooltip in described_bindings(screen):
        name = "Everywhere" if node is screen.app else "On this screen" if node is screen else "Here"
        key = screen.app.get_key_display(binding)
        words = f"{binding.description}: {tooltip}" if tooltip else binding.description
        keys = found.setdefault(name, {}).setdefault(words, [])
        if key not in keys:
            keys.append(key)
    order = sorted(found, key=["Here", "On this screen", "Everywhere"].index)
    return {name: [(" ".join(keys), words) for words, keys in found[name].items()] for name in order}
