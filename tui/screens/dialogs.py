"""Dialogs: an error with its fix, a question, and what is to happen to runs when the app closes."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError
from mlxzo.core.formatting import printable

from .page import title


class Choice(ModalScreen[str | None]):
    """A text and a row of buttons; returns the id of the one pressed, or None (escape)."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("left,up", "app.focus_previous", show=False),
        Binding("right,down", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, text: str, choices: dict[str, str], *, danger: str = "", kind: str = ""):
        """The first of `choices` (id -> label) has the focus; `danger` names one that destroys something."""
        super().__init__(classes=kind)
        self._title, self._text, self._choices, self._danger = title, text, choices, danger

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog", can_focus=False) as dialog:
            dialog.border_title = title(self._title)
            yield Static(self._text, markup=False, classes="dialog-text")
            with Horizontal(classes="dialog-buttons"):
                for name, label in self._choices.items():
                    variant = (
                        "error"
                        if name == self._danger
                        else "primary"
                        if name == next(iter(self._choices))
                        else "default"
                    )
                    yield Button(label, id=name, variant=variant, compact=True)

    def on_mount(self) -> None:
        self.query(Button).first().focus()

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
        self._answer()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "do":
            self._answer()
        else:
            self.dismiss(None)

    def _answer(self) -> None:
        self.dismiss(self.query_one(Input).value.strip() or None)


def error_dialog(problem: MlxzoError | events.Failed, **more: str) -> Choice:
    """What went wrong in one sentence, the details, and what to do; `more` are further buttons, put first."""
    parts = [problem.message]
    if problem.details:
        parts.append("\n".join(problem.details))
    if problem.fix:
        parts.append(f"What to do: {problem.fix}")
    return Choice(problem.title, printable("\n\n".join(parts)), {**more, "close": "Close"}, kind="error")
