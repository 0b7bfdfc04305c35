"""Exporting a run from the app: forms that suit the run, a real export of a tiny model, and errors with their fix."""

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest
from textual.widgets import Input

from mlxzo.core import events
from mlxzo.core.run_directory import BEST_STATE, JOURNAL
from tests.engine.test_export import tuned_run
from tests.tiny import tiny_folder
from tui.app import MlxzoApp
from tui.child import Child

from .driving import drive, every_size, fills, wait_for


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run of a tiny model, as training leaves it."""
    folder = tmp_path_factory.mktemp("exported")
    run, _ = tuned_run(folder / "runs", "lora", tiny_folder(folder / "model"))
    return run


def test_a_journal_is_exported_by_keys_alone_and_its_path_shown(tuned, tmp_path):
    target = tmp_path / "tuned.mlxzo"

    async def scenario(pilot):
        await wait_for(pilot, "model")
        await pilot.press("x")
        await wait_for(pilot, "● adapter")
        assert pilot.app.screen.query_one("#export-to", Input).value == "run-adapter"
        await pilot.press("left")
        await wait_for(pilot, "● journal")
        assert pilot.app.screen.query_one("#export-to", Input).value == "run.mlxzo"
        pilot.app.screen.query_one("#export-to", Input).value = str(target)
        await pilot.press("enter")
        for words in ("✓ exported", "of step 3", "mlxzo replay", "Copy the path"):
            await wait_for(pilot, words)
        assert target.stat().st_size < 10_000
        # The file is there now: another dialog says so, and keeps what was chosen.
        await pilot.press("escape", "x", "left")
        pilot.app.screen.query_one("#export-to", Input).value = str(target)
        await pilot.press("enter")
        shown = await wait_for(pilot, "exists already", "● journal")
        assert "Traceback" not in shown
        await wait_for(pilot, "name another file")

    drive(MlxzoApp(root=str(tuned.path.parent)), scenario)


def test_an_adapter_is_exported_from_the_monitor_by_mouse_alone(tuned, tmp_path):
    target = tmp_path / "adapter"

    async def scenario(pilot):
        line = (await wait_for(pilot, "Export")).splitlines()[-1]
        await pilot.click("Keys", offset=(line.index("Export"), 0))
        await wait_for(pilot, "● adapter")
        pilot.app.screen.query_one("#export-to", Input).value = str(target)
        await pilot.click("#do")
        await wait_for(pilot, "✓ exported")
        assert (target / "adapters.safetensors").is_file()
        await pilot.click("#close")
        await wait_for(pilot, "1 Loss")

    drive(MlxzoApp(root=str(tuned.path.parent), run=tuned), scenario)


def test_only_forms_that_suit_the_run_are_offered(make_run, root):
    run = make_run(name="backward", method="bp")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        await pilot.press("x")
        await wait_for(pilot, "has no checkpoint yet")
        (run.path / BEST_STATE).parent.mkdir()
        (run.path / BEST_STATE).write_bytes(b"no state")
        await pilot.press("x")
        async for size in every_size(pilot):
            shown = await wait_for(pilot, "Export backward", "○ fused", "backward-adapter", "Close")
            assert "journal" not in shown
            await fills(pilot, size)
        await pilot.press("right")
        await wait_for(pilot, "dequantized")
        await pilot.press("escape")
        (run.path / JOURNAL).write_bytes(b"")
        await pilot.press("x")
        await wait_for(pilot, "journal")

    drive(MlxzoApp(root=str(root)), scenario)


class LateChild:
    """A command whose first event comes once the dialog `of` is closed, which may not be unmounted yet."""

    def __init__(self):
        self.of, self.ended = None, False

    async def answer(self):
        while self.of is None or self.of in self.of.app.screen_stack:
            await asyncio.sleep(0)
        return json.loads(events.to_json(events.Phase("load", "model"), 0.0))

    def end(self):
        self.ended = True


def test_closing_the_dialog_ends_what_it_started(tuned, monkeypatch):
    children = []

    async def slow_command(*words):
        children.append(await Child.start(_command=[sys.executable, "-c", "import time; time.sleep(600)"]))
        return children[-1]

    async def scenario(pilot):
        await wait_for(pilot, "model")
        await pilot.press("x", "enter")
        await wait_for(pilot, lambda: children)
        await pilot.press("escape")
        await wait_for(pilot, lambda: not children[0].running)
        await wait_for(pilot, "Runs in")

    monkeypatch.setattr("tui.screens.export.Child", SimpleNamespace(start=slow_command))
    drive(MlxzoApp(root=str(tuned.path.parent)), scenario)


def test_an_event_that_comes_while_the_dialog_closes_leaves_no_command_behind(tuned, monkeypatch):
    child = LateChild()

    async def start(*words):
        return child

    async def scenario(pilot):
        await wait_for(pilot, "model")
        await pilot.press("x", "enter")
        child.of = pilot.app.screen
        await pilot.press("escape")
        await wait_for(pilot, lambda: child.ended)
        await wait_for(pilot, "Runs in")

    monkeypatch.setattr("tui.screens.export.Child", SimpleNamespace(start=start))
    drive(MlxzoApp(root=str(tuned.path.parent)), scenario)
