"""The export dialog: format, target, progress, and how to use the result."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from rich.console import Group
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError
from mlxzo.core.files import user_path
from mlxzo.core.formatting import default_out, describe, format_amount, format_share, printable, result_rows
from mlxzo.core.run_directory import JOURNAL, RunDirectory

from ..child import Child
from ..widgets.form import Pick
from ..widgets.text import pairs_table
from .page import title

_FORMS = {
    "adapter": "A folder with the trained parameters only, which mlx-lm loads on top of the base model.",
    "fused": "A whole model in a folder, in mlx-lm's format, as large as the base model.",
    "journal": "A file of kilobytes, from which `mlxzo replay` rebuilds the weights bit for bit.",
}


class ExportDialog(ModalScreen[None]):
    """Writes the best checkpoint of a run in another format, by `mlxzo export` in a child process."""

    help = (
        "Export writes the best checkpoint of a run. Choose a format with the arrow keys, and a path; Enter exports. "
        "Relative paths start in the folder where mlxzo was started."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "export", "Export"),
        Binding("escape", "dismiss", "Close"),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]

    def __init__(self, run: RunDirectory):
        super().__init__()
        self._run = run
        self._busy = False
        self._written: str | None = None
        """The path of the result, once it is written."""

    def compose(self) -> ComposeResult:
        forms = tuple(form for form in _FORMS if form != "journal" or (self._run.path / JOURNAL).exists())
        with VerticalScroll(classes="dialog", can_focus=False) as dialog:
            dialog.border_title = title(f"Export {self._run.id}")
            with Horizontal(classes="dialog-line"):
                yield Static("format", classes="field-name")
                yield Pick(forms, "adapter", id="form", help=self.help)
            yield Static(_FORMS["adapter"], id="form-help", markup=False)
            with Horizontal(classes="dialog-line", id="weights-line"):
                yield Static("weights", classes="field-name")
                yield Pick(
                    ("as they are", "dequantized"),
                    "as they are",
                    id="weights",
                    help="Fused into a quantised base, LoRA pairs are rounded to its quantisation. Dequantized weights "
                    "keep them exact; the model is then as large as an unquantised one.",
                )
            with Horizontal(classes="dialog-line"):
                yield Static("to", classes="field-name")
                yield Input(default_out(self._run.id, "adapter"), compact=True, id="export-to")
            yield Static(id="export-state", markup=False)
            with Horizontal(classes="dialog-buttons"):
                yield Button("Export", id="do", variant="primary", compact=True)
                yield Button("Close", id="close", compact=True)

    def on_mount(self) -> None:
        self.query_one("#weights-line").display = False
        self.query_one("#form").focus()

    def on_pick_changed(self, event: Pick.Changed) -> None:
        if event.pick.id != "form":
            return
        self.query_one("#form-help", Static).update(_FORMS[event.value])
        self.query_one("#weights-line").display = event.value == "fused"
        self.query_one("#export-to", Input).value = self._target(event.value)

    def _target(self, form: str) -> str:
        """The path that the user typed, or the default path of the format."""
        typed = self.query_one("#export-to", Input).value.strip()
        defaults = {default_out(self._run.id, form) for form in _FORMS}
        return default_out(self._run.id, form) if typed in defaults else typed

    def on_input_submitted(self) -> None:
        self.action_export()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "close":
            self.dismiss()
        elif self._written is None:
            self.action_export()
        else:
            self.app.copy_to_clipboard(self._written)
            self.notify(self._written, title="Copied")

    def action_export(self) -> None:
        """Starts the command."""
        if self._busy or self._written is not None:
            return
        form = self.query_one("#form", Pick).value
        # The field may lag behind when keys follow each other at once.
        target = self._target(form)
        if not target:
            self._say("✗ No path: type a folder, or a file for a journal.")
            return
        words = ["export", str(self._run.path), "--to", form, "--stream"]
        words += ["--out", os.fspath(user_path(target).absolute())]
        if form == "fused" and self.query_one("#weights", Pick).value == "dequantized":
            words.append("--dequantize")
        self._busy = True
        self._export(words)

    @work(exclusive=True)
    async def _export(self, words: list[str]) -> None:
        self._say("starting …")
        self.query_one("#do", Button).disabled = True
        child: Child | None = None
        try:
            child = await Child.start(*words)
            # A dialog that was closed meanwhile has nothing to show events in.
            while (record := await child.answer()) is not None and self in self.app.screen_stack:
                event, _ = events.from_record(record) or (None, 0.0)
                if isinstance(event, events.Finished):
                    self._show(event.result)
                elif line := _progress_line(event):
                    self._say(line)
        except MlxzoError as problem:
            self._say(f"✗ {describe(problem)}")
            self.query_one("#do", Button).disabled = False
        finally:
            # Also once the dialog is closed, and this is cancelled.
            if child is not None:
                child.end()
            self._busy = False

    def _say(self, text: str) -> None:
        self.query_one("#export-state", Static).update(text)
        self.query_one("#export-state").set_class(text.startswith("✗"), "-wrong")

    def _show(self, result: dict[str, Any]) -> None:
        """Shows the result in place of the fields."""
        self._written = str(result["out"])
        for widget in self.query(".dialog-line, #form-help"):
            widget.display = False
        self.query_one("#export-state", Static).update(Group("✓ exported", "", pairs_table(result_rows(result))))
        button = self.query_one("#do", Button)
        button.label, button.disabled = "Copy the path", False
        self.query_one("#close").focus()


def _progress_line(event: events.Event | None) -> str:
    """The line for an event of the command; '' for other events."""
    match event:
        case events.Phase(phase="load"):
            return f"▸ loading {printable(event.detail)} …"
        case events.Phase(phase="save"):
            return f"▸ writing {printable(event.detail)} …"
        case events.Progress(label=label, done=done, total=None, unit=unit):
            return f"▸ {printable(label)}: {format_amount(done, unit)}"
        case events.Progress(label=label, done=done, total=float() | int() as total, unit=unit):
            return f"▸ {printable(label)}: {format_share(done, total, unit)} ({100 * done / max(1.0, total):.0f} %)"
    return ""
