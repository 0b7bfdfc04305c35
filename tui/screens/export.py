"""Export a run: the form, where it goes, how far it is, and how to use what was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group
from rich.table import Table
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from mlxzo.core import events
from mlxzo.core.errors import MlxzoError
from mlxzo.core.formatting import default_out, describe, format_amount, format_share, printable, result_rows
from mlxzo.core.run_directory import JOURNAL, RunDirectory

from ..child import Child
from ..widgets.form import Pick
from .page import title

_FORMS = {
    "adapter": "A folder that mlx-lm loads beside the base model: only what was trained.",
    "fused": "A whole model in a folder, for everything that reads mlx-lm's models. As large as the base model.",
    "journal": "One file of kilobytes, from which `mlxzo replay` rebuilds the weights to the bit.",
}


class ExportDialog(ModalScreen[None]):
    """Makes a run's best state into something to use or to give away; `mlxzo export` does it, in a child process."""

    help = (
        "Export writes the best state of a run. Choose a form with the arrow keys and a place to write to; Enter "
        "exports. Relative paths start where mlxzo was started."
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
        self._child: Child | None = None
        self._made: str | None = None
        """What was written, in a dialog that is done."""

    def compose(self) -> ComposeResult:
        forms = tuple(form for form in _FORMS if form != "journal" or (self._run.path / JOURNAL).exists())
        with VerticalScroll(classes="dialog", can_focus=False) as dialog:
            dialog.border_title = title(f"Export {self._run.id}")
            with Horizontal(classes="dialog-line"):
                yield Static("form", classes="field-name")
                yield Pick(forms, "adapter", id="form", help=self.help)
            yield Static(_FORMS["adapter"], id="form-help", markup=False)
            with Horizontal(classes="dialog-line", id="weights-line"):
                yield Static("weights", classes="field-name")
                yield Pick(
                    ("as they are", "dequantized"),
                    "as they are",
                    id="weights",
                    help="Of a quantised base, fused LoRA pairs are rounded to the quantisation; dequantized weights "
                    "keep them exact and make the model as large as an unquantised one.",
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

    def on_unmount(self) -> None:
        if self._child is not None:
            self._child.end()

    def on_pick_changed(self, event: Pick.Changed) -> None:
        if event.pick.id != "form":
            return
        self.query_one("#form-help", Static).update(_FORMS[event.value])
        self.query_one("#weights-line").display = event.value == "fused"
        self.query_one("#export-to", Input).value = self._target(event.value)

    def _target(self, form: str) -> str:
        """Where a form goes: a place that the user named, or the usual one of the form."""
        named = self.query_one("#export-to", Input).value.strip()
        usual = {default_out(self._run.id, form) for form in _FORMS}
        return default_out(self._run.id, form) if named in usual else named

    def on_input_submitted(self) -> None:
        self.action_export()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "close":
            self.dismiss()
        elif self._made is None:
            self.action_export()
        else:
            self.app.copy_to_clipboard(self._made)
            self.notify(self._made, title="Copied")

    def action_export(self) -> None:
        """Starts the command with what the dialog says."""
        if self._child is not None or self._made is not None:
            return
        form = self.query_one("#form", Pick).value
        # The field may not say it yet where a key follows another at once.
        target = self._target(form)
        if not target:
            self._say("✗ There is no place to write to: name a folder, or a file for a journal.")
            return
        words = ["export", str(self._run.path), "--to", form, "--stream"]
        words += ["--out", os.fspath(Path(target).expanduser().absolute())]
        if form == "fused" and self.query_one("#weights", Pick).value == "dequantized":
            words.append("--dequantize")
        self._export(words)

    @work(exclusive=True)
    async def _export(self, words: list[str]) -> None:
        self._say("starting …")
        self.query_one("#do", Button).disabled = True
        try:
            self._child = await Child.start(*words)
            while (said := await self._child.answer()) is not None:
                event, _ = events.from_record(said) or (None, 0.0)
                if isinstance(event, events.Finished):
                    self._show(event.result)
                elif doing := _doing(event):
                    self._say(doing)
        except MlxzoError as problem:
            self._say(f"✗ {describe(problem)}")
            self.query_one("#do", Button).disabled = False
        self._child = None

    def _say(self, text: str) -> None:
        self.query_one("#export-state", Static).update(text)
        self.query_one("#export-state").set_class(text.startswith("✗"), "-wrong")

    def _show(self, result: dict[str, Any]) -> None:
        """The result in place of the questions."""
        self._made = str(result["out"])
        for widget in self.query(".dialog-line, #form-help"):
            widget.display = False
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in result_rows(result):
            table.add_row(name, printable(value))
        self.query_one("#export-state", Static).update(Group("✓ exported", "", table))
        button = self.query_one("#do", Button)
        button.label, button.disabled = "Copy the path", False
        self.query_one("#close").focus()


def _doing(event: events.Event | None) -> str:
    """What an event of the command says of the work in hand; '' for nothing."""
    match event:
        case events.Phase(phase="load"):
            return f"▸ loading {printable(event.detail)} …"
        case events.Phase(phase="save"):
            return f"▸ writing {printable(event.detail)} …"
        case events.Progress(total=None):
            return f"▸ {printable(event.label)}: {format_amount(event.done, event.unit)}"
        case events.Progress():
            share = format_share(event.done, event.total, event.unit)
            return f"▸ {printable(event.label)}: {share} ({100 * event.done / max(1.0, event.total):.0f} %)"
    return ""
