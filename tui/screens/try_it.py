"""Prompt a tuned model beside its base. The models run in a child process; this one only shows what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterable
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Button, Input, Static, TextArea

from mlxzo.errors import MlxzoError
from mlxzo.formatting import printable
from mlxzo.runs import BEST_STATE, RunDirectory
from mlxzo.supervisor import worker_environment
from mlxzo.tasks.registry import get_task

from .dialogs import error_dialog
from .monitor import Panel
from .page import Page

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
        self._process: asyncio.subprocess.Process | None = None

    def body(self) -> Iterable[Widget]:
        yield Static(_NOTHING, id="nothing", markup=False)
        prompt = Prompt(id="prompt")
        prompt.border_title = "Prompt"
        yield prompt
        with Horizontal(id="try-row"):
            yield Button("Generate F9", id="generate", variant="primary", compact=True)
            yield Static("tokens", classes="field-name")
            yield Input("40", id="tokens", compact=True, type="integer", max_length=4)
            yield Static(id="try-state", markup=False)
        with Horizontal(id="answers"):
            yield Panel(id="base", title="Base", help="The model before training.")
            yield Panel(id="tuned", title="Tuned", help="The best state of the run.")

    def on_screen_resume(self) -> None:
        run = self.app.tried
        self.query_one("#nothing").display = run is None
        for name in ("#prompt", "#try-row", "#answers"):
            self.query_one(name).display = run is not None
        if run is None or run == self._shown:
            return
        self._shown = run
        self.query_one("#prompt").border_subtitle = run.id
        for name in ("base", "tuned"):
            self.query_one(f"#{name}", Panel).show("")
        # Where the task has no example of its own, an empty prompt is better than none.
        with contextlib.suppress(MlxzoError):
            self.query_one(TextArea).text = get_task(run.config.task).example_prompt()
        self.query_one(TextArea).focus()

    def on_unmount(self) -> None:
        self.action_stop()

    def on_button_pressed(self) -> None:
        self.action_generate()

    def on_input_submitted(self) -> None:
        self.action_generate()

    def action_stop(self) -> None:
        """Ends the generation that goes on."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def action_generate(self) -> None:
        run = self.app.tried
        if run is None:
            return
        if not (run.path / BEST_STATE).exists():
            self.notify("This run has saved no state yet, so there is nothing to try.", severity="warning")
            return
        if not self.query_one(TextArea).text.strip():
            self.notify("Write a prompt first: the text that the models go on from.", severity="warning")
            return
        self._generate(run, self.query_one(TextArea).text, self.query_one("#tokens", Input).value or "40")

    @work(exclusive=True, group="generate")
    async def _generate(self, run: RunDirectory, prompt: str, tokens: str) -> None:
        self.action_stop()
        texts = {"base": "", "tuned": ""}
        for name in texts:
            self.query_one(f"#{name}", Panel).show("")
        state = self.query_one("#try-state", Static)
        state.update("loading the model …")
        try:
            async for speaker, piece in self._pieces(run, prompt, tokens):
                state.update(f"{speaker} model speaks …")
                texts[speaker] += piece
                self.query_one(f"#{speaker}", Panel).show(
                    printable(prompt.splitlines()[-1] + texts[speaker]), to_end=True
                )
            state.update("")
        except MlxzoError as problem:
            state.update("")
            self.app.push_screen(error_dialog(problem))

    async def _pieces(self, run: RunDirectory, prompt: str, tokens: str) -> AsyncIterator[tuple[str, str]]:
        """What the two models say, piece by piece, from `mlxzo generate` in a child process.

        Raises:
            MlxzoError: the models could not be had.
        """
        command = (sys.executable, "-P", "-m", "mlxzo", "generate", "--run", str(run.path), "--json", "--stream")
        self._process = process = await asyncio.create_subprocess_exec(
            *command,
            "--max-new-tokens",
            tokens,
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=worker_environment(),
        )
        try:
            process.stdin.write(prompt.encode())
            process.stdin.close()
            rest = b""
            async for line in process.stdout:
                try:
                    said = json.loads(line)
                    yield said["speaker"], said["text"]
                except (ValueError, KeyError, TypeError):
                    rest += line
            errors = await process.stderr.read()
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        if code > 0:
            raise _failure(rest, errors)


def _failure(output: bytes, errors: bytes) -> MlxzoError:
    """The error that `mlxzo generate` reported."""
    try:
        told = json.loads(output)["error"]
        error = MlxzoError(told["message"], told["fix"], told["details"])
        error.title = told["title"]
    except (ValueError, KeyError, TypeError):
        lines = errors.decode("utf-8", errors="replace").strip().splitlines()
        return MlxzoError("the model could not be tried", "try `mlxzo generate` in a shell", lines[-5:])
    return error


class Prompt(TextArea):
    """The text that both models go on from."""

    help = "The text that both models go on from. F9 generates; tab leaves the field."
