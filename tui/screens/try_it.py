"""Prompts for a tuned model and its base, side by side.

A child process (`mlxzo generate --serve`) holds both models until the screen is left, or another run or checkpoint is
tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button, Input, Static, TextArea

from mlxzo.core.errors import MlxzoError
from mlxzo.core.formatting import printable
from mlxzo.core.run_directory import BEST_STATE, RunDirectory
from mlxzo.engine.sampling import LONGEST
from mlxzo.tasks.registry import get_task

from ..child import Child
from ..widgets.text import Panel
from .page import Page, title

_TOKENS = "40"
_MODELS = {"base": "the model before training", "tuned": "the best checkpoint of the run"}
_NOTHING = (
    "No run chosen.\n\n"
    "F2  choose a finished run and press t: the tuned model and its base\n"
    "    continue your prompt. A stopped run keeps its best checkpoint so\n"
    "    far, and can be tried as well."
)


class TryIt(Page):
    """One prompt, two answers."""

    mode = "try_it"
    help = (
        "Try it shows how a tuned model and its base continue the same prompt. End the prompt where the answer begins: "
        "the models complete text, they do not chat."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9,ctrl+g", "generate", "Generate", key_display="f9", priority=True),
        Binding("G", "generate", "Generate", show=False),
        Binding("escape", "stop", "Stop"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown: RunDirectory | None = None
        self._child: Child | None = None
        self._loaded: tuple[Path, int] | None = None
        """The checkpoint that the child has loaded: the run's folder, and the modification time in ns."""
        self._pending = 0
        """Answers whose end the child has not sent yet."""

    def body(self) -> Iterable[Widget]:
        yield Static(_NOTHING, id="nothing", markup=False)
        prompt = Prompt(id="prompt")
        prompt.border_title = "Prompt"
        yield prompt
        with Horizontal(id="try-row"):
            yield Button("Generate F9", id="generate", variant="primary", compact=True)
            yield Static("tokens", classes="field-name")
            yield Input(_TOKENS, id="tokens", compact=True, type="integer", max_length=4)
            yield Static(id="try-state", markup=False)
        with Horizontal(id="answers"):
            for name, model in _MODELS.items():
                yield Panel(id=name, title=name.capitalize(), help=f"The prompt, continued by {model}.")

    def on_screen_resume(self) -> None:
        run = self.app.tried
        self.query_one("#nothing").display = run is None
        for name in ("#prompt", "#try-row", "#answers"):
            self.query_one(name).display = run is not None
        if run is None or run == self._shown:
            return
        self._shown = run
        self.query_one("#prompt").border_subtitle = title(run.id)
        for name, model in _MODELS.items():
            self.query_one(f"#{name}", Panel).show(Text(f"{model.capitalize()} continues the prompt here.", "dim"))
        prompt = self.query_one(TextArea)
        # A task without an example leaves the prompt as it is.
        with contextlib.suppress(MlxzoError):
            prompt.text = get_task(run.config.task).example_prompt()
        prompt.move_cursor(prompt.document.end)
        prompt.focus()

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

    @on(Button.Pressed)
    @on(Input.Submitted)
    def action_generate(self) -> None:
        """Has both models continue the prompt."""
        run = self.app.tried
        if run is None:
            return
        if not (run.path / BEST_STATE).exists():
            self.notify("This run has no checkpoint yet: there is nothing to try.", severity="warning")
            return
        prompt, tokens = self.query_one(TextArea).text, self.query_one("#tokens", Input).value or _TOKENS
        if not prompt.strip():
            self.notify("Write a prompt first: the models continue it.", severity="warning")
        elif not 1 <= int(tokens) <= LONGEST:
            self.notify(f"An answer has 1 to {LONGEST} tokens.", severity="warning")
        else:
            self._generate(run, prompt, int(tokens))

    @work(exclusive=True, group="generate")
    async def _generate(self, run: RunDirectory, prompt: str, tokens: int) -> None:
        texts = dict.fromkeys(_MODELS, "")
        for name in texts:
            self.query_one(f"#{name}", Panel).show("")
        state = self.query_one("#try-state", Static)
        try:
            async for record in self._answer(run, prompt, tokens, state):
                model = record["speaker"]
                state.update(f"generating, {model} model …")
                texts[model] += record["text"]
                self.query_one(f"#{model}", Panel).show(printable(prompt.splitlines()[-1] + texts[model]), to_end=True)
        except MlxzoError as problem:
            self._end_child()
            self.app.report(problem)
        state.update("")

    async def _answer(
        self, run: RunDirectory, prompt: str, tokens: int, state: Static
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields both models' answers to a prompt, piece by piece; loads the models first if needed.

        Raises:
            MlxzoError: the models are not available, or their process has ended.
        """
        wanted = (run.path, (run.path / BEST_STATE).stat().st_mtime_ns)
        child = self._child
        if child is None or not child.running or self._loaded != wanted:
            self._end_child()
            state.update("loading the model …")
            self._child = child = await Child.start("generate", "--run", str(run.path), "--serve", "-")
            self._loaded, self._pending = wanted, 0
        # The end of an interrupted answer still comes first.
        self._pending += 1
        await child.ask({"prompt": prompt, "max_new_tokens": tokens})
        while (record := await child.answer()) is not None:
            if record.get("done"):
                self._pending -= 1
                if not self._pending:
                    return
            elif self._pending == 1:
                yield record
        if child is self._child:
            raise MlxzoError("the process that held the models has ended", "generate again: it loads them again")


class Prompt(TextArea):
    """The text that both models continue."""

    help = "The text that both models continue. F9 generates; Tab leaves the field."
