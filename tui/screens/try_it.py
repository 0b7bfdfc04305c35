"""Labels, or the continuation of a text, by a tuned model and its base, side by side.

A child process (`mlxzo generate --serve`) holds both models until the screen is left, or another run or checkpoint is
tried.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Input, Static, TextArea

from mlxzo.core.errors import MlxzoError
from mlxzo.core.formatting import printable
from mlxzo.core.run_directory import BEST_STATE, RunDirectory
from mlxzo.engine.sampling import LONGEST
from mlxzo.tasks.base import Task, label_text
from mlxzo.tasks.classification import Classification
from mlxzo.tasks.registry import get_task, held_out_rows, task_alone

from ..child import Child
from ..run_list import look
from ..widgets.form import Pick
from ..widgets.text import Panel
from .page import Page, title

_TOKENS = "40"
# Between two drawings of an answer that is being written.
_DRAWING_SECONDS = 0.05
_MODELS = {"base": "the model before training", "tuned": "the best checkpoint of the run"}
_LABELS, _TEXT = "labels", "free text"
# The newest runs, searched for one to try where none was opened.
_RUNS_SEARCHED = 50
_NOTHING = (
    "No run to try yet.\n\n"
    "F3 or S  sets one up. When it has trained, this screen takes it: the\n"
    "         labels of your own texts, by the tuned model and its base.\n"
    "F2 or R  lists the runs; t there tries the one under the cursor. A\n"
    "         stopped run keeps its best checkpoint so far."
)


class TryIt(Page):
    """One text, two answers."""

    mode = "try_it"
    help = (
        "Try it shows what a tuned model and its base make of the same text. Of a task with labels: the probability of "
        "each; F8 takes a held-out row of the data. Free text: how both continue a prompt. End it where the answer "
        "begins: the models complete text, they do not chat."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9,ctrl+g", "ask", "Ask both", key_display="f9", priority=True, tooltip="asks both models (or ^g)"),
        Binding("G", "ask", "Ask both", show=False),
        Binding(
            "f8,ctrl+n",
            "next_row",
            "Next row",
            key_display="f8",
            priority=True,
            tooltip="takes the next held-out row (or ^n)",
        ),
        Binding("N", "next_row", "Next row", show=False),
        Binding("escape", "stop", "Stop"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown: RunDirectory | None = None
        self._of_task: Task | None = None
        """The task of the run. (`_task` is Textual's own.)"""
        self._rows: list[dict[str, Any]] = []
        """Held-out rows of the task; without any, the row that the task has as a sample."""
        self._row = -1
        self._right: tuple[dict[str, str], str] | None = None
        """The texts of the row that is shown, and its label; None for a text that was typed."""
        self._child: Child | None = None
        self._loaded: tuple[Path, int] | None = None
        """The checkpoint that the child has loaded: the run's folder, and the modification time in ns."""
        self._pending = 0
        """Answers whose end the child has not sent yet."""

    def body(self) -> Iterable[Widget]:
        yield Static(_NOTHING, id="nothing", markup=False)
        yield VerticalScroll(id="fields", can_focus=False)
        prompt = Prompt(id="prompt")
        prompt.border_title = "Prompt"
        yield prompt
        with Horizontal(id="try-row"):
            yield Button("Ask both F9", id="ask", variant="primary", compact=True)
            yield Button("Next row F8", id="next-row", compact=True)
            yield Pick(
                (_LABELS, _TEXT),
                _LABELS,
                id="answer-kind",
                help="labels: the probability of each label of the task. free text: how both models continue a prompt.",
            )
            yield Static("tokens", classes="field-name")
            yield Input(_TOKENS, id="tokens", compact=True, type="integer", max_length=4)
            yield Static(id="try-state", markup=False)
        with Horizontal(id="answers"):
            for name, model in _MODELS.items():
                yield Panel(id=name, title=name.capitalize(), help=f"The answer of {model}.", follows=True)

    @property
    def labels(self) -> Classification | None:
        """The task whose labels are asked for; None for free text."""
        asks = self.query_one("#answer-kind", Pick).value == _LABELS
        return self._of_task if asks and isinstance(self._of_task, Classification) else None

    def on_mount(self) -> None:
        self._lay_out()

    def on_screen_resume(self) -> None:
        if self.app.tried is None:
            newest = look(self.app.root)[0][:_RUNS_SEARCHED]
            self.app.tried = next((run for run in newest if (run.path / BEST_STATE).exists()), None)
        run = self.app.tried
        if run == self._shown:
            return
        self._shown, self._of_task, self._rows = run, None, []
        self._lay_out()
        if run is not None:
            self._read_task(run)

    @work(thread=True, exclusive=True, group="task")
    def _read_task(self, run: RunDirectory) -> None:
        """Reads the task of a run and its held-out rows, which may be many."""
        task, rows = None, []
        # Without its data, a run still continues a prompt.
        with suppress(MlxzoError):
            task = get_task(run.config.task)
            task = task_alone(run.config)
            rows = held_out_rows(run.config) if isinstance(task, Classification) else []
        self.deliver(self.call_later, self._show_task, run, task, rows)

    async def _show_task(self, run: RunDirectory, task: Task | None, rows: list[dict[str, Any]]) -> None:
        if run != self._shown:
            return
        self._of_task, self._row, self._right = task, -1, None
        fields = self.query_one("#fields")
        await fields.remove_children()
        if isinstance(task, Classification):
            sample = [dict(task.sample_row)] if task.sample_row is not None else []
            self._rows = rows or sample
            self.query_one("#answer-kind", Pick).value = _LABELS
            await fields.mount(*(Prompt(id=f"field-{place}") for place in range(len(task.input_fields))))
            for name, field in zip(task.input_fields, self._fields(), strict=True):
                field.border_title = title(name)
            fields.set_class(len(task.input_fields) > 1, "-many")
        prompt = self.query_one("#prompt", Prompt)
        prompt.text = ""
        if task is not None:
            with suppress(MlxzoError, ValueError):
                prompt.text = task.example_prompt()
        self._lay_out()
        self.action_next_row()
        self._focus_text()

    def _fields(self) -> list[Prompt]:
        return list(self.query_one("#fields").query(Prompt))

    def _lay_out(self) -> None:
        """Shows what the task and the kind of answer need, and empties the answers."""
        run, labels = self._shown, self.labels
        self.query_one("#nothing").display = run is None
        for name in ("#try-row", "#answers"):
            self.query_one(name).display = run is not None
        self.query_one("#fields").display = labels is not None
        self.query_one("#prompt").display = run is not None and labels is None
        self.query_one("#answer-kind").display = isinstance(self._of_task, Classification)
        self.query_one("#next-row").display = bool(self._rows)
        for name in ("#try-row .field-name", "#tokens"):
            self.query_one(name).display = labels is None
        if run is not None:
            boxes = [self.query_one("#prompt", Prompt), *self._fields()]
            for box in boxes:
                box.border_subtitle = title(run.id) if box in (boxes[0], boxes[-1]) else ""
        what = "continues the prompt here" if labels is None else "gives each label a probability here"
        for name, model in _MODELS.items():
            self.query_one(f"#{name}", Panel).show(Text(f"{model.capitalize()} {what}.", "dim"))
        self.refresh_bindings()

    def _focus_text(self) -> None:
        """Focuses the text, selected as a whole: what is typed takes its place."""
        box = self._fields()[0] if self.labels is not None else self.query_one("#prompt", Prompt)
        box.focus()
        if self.labels is None:
            box.move_cursor(box.document.end)
        else:
            box.select_all()

    def on_pick_changed(self) -> None:
        """Continues as free text what the model sees of a row."""
        if isinstance(self._of_task, Classification):
            if self.labels is None and (values := self._values()) is not None:
                self.query_one("#prompt", Prompt).text = self._of_task.question(values).prompt
            self._lay_out()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "next_row":
            return bool(self._rows)
        return self._shown is not None if action in ("ask", "stop") else True

    def action_next_row(self) -> None:
        """Takes the next held-out row."""
        task = self._of_task
        if not self._rows or not isinstance(task, Classification):
            return
        for _ in self._rows:
            self._row = (self._row + 1) % len(self._rows)
            row = self._rows[self._row]
            with suppress(ValueError):
                prompt = task.question(row).prompt
                break
        else:
            return
        values = {name: str(row[name]).strip() for name in task.input_fields}
        known = task.known_label(row)
        self._right = None if known is None else (values, task.classes[known].text)
        for box, text in zip(self._fields(), values.values(), strict=True):
            box.text = text
        self.query_one("#prompt", Prompt).text = prompt
        self._lay_out()
        if isinstance(self.focused, Prompt):
            self._focus_text()

    def _values(self) -> dict[str, str] | None:
        """The texts of the fields; None, with a message, if one is empty."""
        assert isinstance(self._of_task, Classification)
        values = {name: box.text.strip() for name, box in zip(self._of_task.input_fields, self._fields(), strict=True)}
        if empty := [name for name, text in values.items() if not text]:
            self.notify(f"Write something first: {empty[0]} is empty.", severity="warning")
            return None
        return values

    def on_screen_suspend(self) -> None:
        # A dialog suspends the screen as well: the models stay loaded.
        if self not in self.app.screen_stack:
            self._end_child()

    def on_unmount(self) -> None:
        self._end_child()

    def _end_child(self) -> None:
        """Ends the process that holds the models."""
        if self._child is not None:
            self._child.end()
        self._child = self._loaded = None

    async def action_stop(self) -> None:
        """Ends the current answer; the models stay loaded."""
        if self._child is not None:
            await self._child.ask({})

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "ask":
            self.action_ask()
        else:
            self.action_next_row()

    @on(Input.Submitted)
    def action_ask(self) -> None:
        """Asks both models for the label of the text, or to continue it."""
        run = self._shown
        if run is None:
            return
        if not (run.path / BEST_STATE).exists():
            self.notify("This run has no checkpoint yet: there is nothing to try.", severity="warning")
        elif self.labels is not None:
            if (values := self._values()) is not None:
                self._label(run, self.labels, values)
        else:
            self._check_prompt(run)

    def _check_prompt(self, run: RunDirectory) -> None:
        prompt, tokens = self.query_one("#prompt", Prompt).text, self.query_one("#tokens", Input).value or _TOKENS
        if not prompt.strip():
            self.notify("Write a prompt first: the models continue it.", severity="warning")
        elif not 1 <= int(tokens) <= LONGEST:
            self.notify(f"An answer has 1 to {LONGEST} tokens.", severity="warning")
        else:
            self._generate(run, prompt, int(tokens))

    @work(exclusive=True, group="ask")
    async def _label(self, run: RunDirectory, task: Classification, values: dict[str, str]) -> None:
        right = self._right[1] if self._right is not None and self._right[0] == values else None
        async for record in self._answers(run, {"row": values}, "labelling …"):
            answer = label_text(record["label"])
            shown = _shares(task, answer, record["probabilities"], right, self.app.theme_variables)
            # Answers are shown once each: their content is no key to compare by.
            self.query_one(f"#{record['speaker']}", Panel).show(shown, key=object())

    @work(exclusive=True, group="ask")
    async def _generate(self, run: RunDirectory, prompt: str, tokens: int) -> None:
        texts = dict.fromkeys(_MODELS, "")
        for name in texts:
            self.query_one(f"#{name}", Panel).show("")
        state, begins = self.query_one("#try-state", Static), prompt.splitlines()[-1]
        drawn = float("-inf")
        async for record in self._answers(run, {"prompt": prompt, "max_new_tokens": tokens}, "generating …"):
            model = record["speaker"]
            texts[model] += record["text"]
            # Each drawing lays out the whole text, and a small model writes thousands of tokens a second.
            if time.monotonic() - drawn >= _DRAWING_SECONDS:
                state.update(f"generating, {model} model …")
                self._show_texts(begins, texts)
                drawn = time.monotonic()
        self._show_texts(begins, texts)

    def _show_texts(self, begins: str, texts: Mapping[str, str]) -> None:
        """Shows what the models have written so far behind the last line of the prompt."""
        for model, text in texts.items():
            self.query_one(f"#{model}", Panel).show(printable(begins + text) if text else "")

    async def _answers(self, run: RunDirectory, request: Mapping[str, Any], busy: str) -> AsyncIterator[dict[str, Any]]:
        """Yields what both models answer, piece by piece; shows what goes on, and an error."""
        state = self.query_one("#try-state", Static)
        try:
            async for record in self._ask(run, request, state, busy):
                yield record
        except MlxzoError as problem:
            self._end_child()
            self.app.report(problem)
        state.update("")

    async def _ask(
        self, run: RunDirectory, request: Mapping[str, Any], state: Static, busy: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields both models' answers to a request, piece by piece; loads the models first if needed.

        Raises:
            MlxzoError: the models are not available, or their process has ended.
        """
        wanted = (run.path, (run.path / BEST_STATE).stat().st_mtime_ns)
        child = self._child
        if child is None or not child.running or self._loaded != wanted:
            self._end_child()
            state.update("loading both models …")
            self._child = child = await Child.start("generate", "--run", str(run.path), "--serve", "-")
            self._loaded, self._pending = wanted, 0
        else:
            state.update(busy)
        # The end of an interrupted answer still comes first.
        self._pending += 1
        await child.ask(request)
        while (record := await child.answer()) is not None:
            if record.get("done"):
                self._pending -= 1
                if not self._pending:
                    return
            elif self._pending == 1:
                yield record
        if child is self._child:
            raise MlxzoError("the process that held the models has ended", "ask again: that loads them again")


def _shares(
    task: Classification, answer: str, shares: Mapping[str, float], right: str | None, colours: Mapping[str, str]
) -> Group:
    """The label that a model answers, and the probability of each as a bar.

    Args:
        right: the label of the row, if it has one.
        colours: the variables of the theme.
    """
    names = {label.text: str(label) for label in task.classes}
    head = Text(f"{printable(names.get(answer, answer))} {100 * shares[answer]:.1f} %", "bold")
    if right is not None:
        verdict = "  ✓ right" if answer == right else f"  ✗ the row says {printable(names[right])}"
        head.append(verdict, "not bold")
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(overflow="fold", max_width=24)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    for label, share in shares.items():
        style = "bold" if label == answer else "dim"
        name = Text(printable(names.get(label, label)), style)
        table.add_row(
            name,
            Bar(1.0, 0.0, share, color=colours["primary"], bgcolor=colours["background"]),
            Text(f"{100 * share:.1f} %", style),
        )
    return Group(head, "", table)


class Prompt(TextArea):
    """A text for both models: a field of a row to label, or a prompt that they continue."""

    help = "The text that both models get. F9 asks both, and so does Enter for labels; Tab leaves the field."
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "ask", "Ask both", priority=True)]
    screen: TryIt

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # In a prompt, Enter begins a line.
        return self.screen.labels is not None if action == "ask" else True

    def action_ask(self) -> None:
        self.screen.action_ask()
