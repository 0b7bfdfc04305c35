"""Dialogs: an error with its fix, a choice by buttons, the name of a file."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError

from ..widgets.text import problem_text
from .page import title


class Choice(ModalScreen[str | None]):
    """A text and a row of buttons; returns the id of the pressed one, None for escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("left,up", "app.focus_previous", show=False),
        Binding("right,down", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, text: str, choices: dict[str, str], *, danger: str = "", kind: str = ""):
        """`choices`: id -> label, the first one focused. `danger`: the id of one that deletes something."""
        super().__init__(classes=kind)
        self._title, self._text, self._choices, self._danger = title, text, choices, danger

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog", can_focus=False) as dialog:
            dialog.border_title = title(self._title)
            yield Static(self._text, markup=False, classes="dialog-text")
            with Horizontal(classes="dialog-buttons"):
                for name, label in self._choices.items():
                    yield Button(label, id=name, variant="error" if name == self._danger else "default", compact=True)

    def on_mount(self) -> None:
        first = self.query(Button).first()
        first.variant = "primary"
        first.focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id)


class FileDialog(ModalScreen[str | None]):
    """Asks for the name of a file."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, title: str, name: str, verb: str):
        super().__init__()
        self._title, self._name, self._verb = title, name, verb

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog", can_focus=False) as dialog:
            dialog.border_title = title(self._title)
            yield Input(self._name, compact=True, id="file-name")
            with Horizontal(classes="dialog-buttons"):
                yield Button(self._verb, id="do", variant="primary", compact=True)
                yield Button("Cancel", id="cancel", compact=True)

    def on_input_submitted(self) -> None:
        self.dismiss(self.query_one(Input).value.strip() or None)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "do":
            self.on_input_submitted()
        else:
            self.dismiss(None)


def error_dialog(problem: MlxzoError | events.Failed, **more: str) -> Choice:
    """An error with its details and its fix; `more` are further buttons, put first."""
    return Choice(problem.title, problem_text(problem, "\n\n"), {**more, "close": "Close"}, kind="error")
