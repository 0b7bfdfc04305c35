"""Prompt a tuned model beside its base. The models are held by a child process; this one only shows what they say.

The child answers prompts (`mlxzo generate --serve`) until the screen is left, or another run or state is to be tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import work
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
from .dialogs import error_dialog
from .page import Page, title

_TOKENS = "40"
_SPEAKERS = {"base": "the model before training", "tuned": "the best state of the run"}
_NOTHING = (
    "No run chosen.\n\n"
    "F2  choose a finished run and press t: it goes on from your prompt beside the model that it was made of.\n"
    "    A run that is stopped keeps its best state so far, and can be tried as well."
)


class TryIt(Page):
    """One prompt, two answers."""

    mode = "try_it"
    help = (
        "Try it lets a tuned model and its base go on from the same prompt, word by word. Leave the prompt where the "
        "answer comes: the model continues the text, it does not chat."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9,ctrl+g", "generate", "Generate", key_display="f9", priority=True),
        Binding("escape", "stop", "Stop"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown: RunDirectory | None = None
        self._child: Child | None = None
        self._loaded: tuple[Path, int] | None = None
        """Which run's state the child has loaded: its folder, and when the state was written."""
        self._owed = 0
        """Answers of which the child has not said the end."""

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
            for name, who in _SPEAKERS.items():
                yield Panel(id=name, title=name.capitalize(), help=f"How {who} goes on from the prompt.")

    def on_screen_resume(self) -> None:
        run = self.app.tried
        self.query_one("#nothing").display = run is None
        for name in ("#prompt", "#try-row", "#answers"):
            self.query_one(name).display = run is not None
        if run is None or run == self._shown:
            return
        self._shown = run
        self.query_one("#prompt").border_subtitle = title(run.id)
        for name, who in _SPEAKERS.items():
            self.query_one(f"#{name}", Panel).show(Text(f"How {who} goes on from the prompt appears here.", "dim"))
        # Where the task has no example of its own, an empty prompt is better than none.
        prompt = self.query_one(TextArea)
        with contextlib.suppress(MlxzoError):
            prompt.text = get_task(run.config.task).example_prompt()
        prompt.move_cursor(prompt.document.end)
        prompt.focus()

    def on_screen_suspend(self) -> None:
        # A dialog over the screen is no reason to load the model again.
        if self not in self.app.screen_stack:
            self._let_go()

    def on_unmount(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """Ends the process that holds the models."""
        if self._child is not None:
            self._child.end()
        self._child = self._loaded = None

    def on_button_pressed(self) -> None:
        self.action_generate()

    def on_input_submitted(self) -> None:
        self.action_generate()

    async def action_stop(self) -> None:
        """Ends the answer that goes on; the models stay loaded."""
        if self._child is not None:
            await self._child.ask({})

    def action_generate(self) -> None:
        """Has both models go on from the prompt."""
        run = self.app.tried
        if run is None:
            return
        if not (run.path / BEST_STATE).exists():
            self.notify("This run has saved no state yet, so there is nothing to try.", severity="warning")
            return
        prompt, tokens = self.query_one(TextArea).text, self.query_one("#tokens", Input).value or _TOKENS
        if not prompt.strip():
            self.notify("Write a prompt first: the text that the models go on from.", severity="warning")
        elif not 1 <= int(tokens) <= LONGEST:
            self.notify(f"An answer has 1 to {LONGEST} tokens.", severity="warning")
        else:
            self._generate(run, prompt, int(tokens))

    @work(exclusive=True, group="generate")
    async def _generate(self, run: RunDirectory, prompt: str, tokens: int) -> None:
        texts = dict.fromkeys(_SPEAKERS, "")
        for name in texts:
            self.query_one(f"#{name}", Panel).show("")
        state = self.query_one("#try-state", Static)
        try:
            async for said in self._answer(run, prompt, tokens, state):
                state.update(f"{said['speaker']} model speaks …")
                texts[said["speaker"]] += said["text"]
                panel = self.query_one(f"#{said['speaker']}", Panel)
                panel.show(printable(prompt.splitlines()[-1] + texts[said["speaker"]]), to_end=True)
            state.update("")
        except MlxzoError as problem:
            state.update("")
            self._let_go()
            self.app.push_screen(error_dialog(problem))

    async def _answer(
        self, run: RunDirectory, prompt: str, tokens: int, state: Static
    ) -> AsyncIterator[dict[str, Any]]:
        """What the two models say to a prompt, piece by piece; they are loaded first where they are not.

        Raises:
            MlxzoError: the models could not be had, or their process has ended.
        """
        wanted = (run.path, (run.path / BEST_STATE).stat().st_mtime_ns)
        if self._loaded != wanted or not self._child.running:
            self._let_go()
            state.update("loading the model …")
            self._child = await Child.start("generate", "--run", str(run.path), "--serve", "-")
            self._loaded, self._owed = wanted, 0
        child = self._child
        # Of an answer that this one interrupts, the end is still to come.
        self._owed += 1
        await child.ask({"prompt": prompt, "max_new_tokens": tokens})
        while (said := await child.answer()) is not None:
            if said.get("done"):
                self._owed -= 1
                if not self._owed:
                    return
            elif self._owed == 1:
                yield said
        if child is self._child:
            raise MlxzoError("the process that held the models has ended", "generate again: it loads them anew")


class Prompt(TextArea):
    """The text that both models go on from."""

    help = "The text that both models go on from. F9 generates; tab leaves the field."
