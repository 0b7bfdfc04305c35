"""Runs on shared axes, one after the other; and a tuned model beside its base."""

import json
import os

import pytest
from textual.widgets import TextArea

from mlxzo import events
from mlxzo.runs import BEST_STATE
from tests.engine.test_export import tuned_run
from tests.tiny import tiny_folder
from tui.app import MlxzoApp
from tui.screens.try_it import TryIt
from tui.widgets.chart import Chart
from tui.widgets.keys import Keys

from .driving import SIZES, drive, wait_for


@pytest.mark.parametrize("size", SIZES)
def test_marked_runs_race_on_shared_axes_at_every_size(make_run, root, size):
    make_run(name="forward")
    make_run(name="backward", method="bp")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        await pilot.press("space", "space", "c")
        shown = await wait_for(pilot, "Contestants")
        for words in ("● backward", "▲ forward", "majority class 50.0 %", "cap 900.0 MB", "74.0 %", "62.8 %"):
            shown = await wait_for(pilot, words) if words not in shown else shown
        assert pilot.app.screen.query_one("#race-accuracy", Chart).title == "Validation accuracy"
        assert all(len(line) == size[0] for line in shown.splitlines())
        await pilot.press("x")
        await wait_for(pilot, lambda: len(pilot.app.race) == 1)

    drive(MlxzoApp(root=str(root)), scenario, size)


def test_nothing_to_race_or_to_try_says_how_to_choose(root):
    async def scenario(pilot):
        await pilot.press("f5")
        await wait_for(pilot, "No race yet")
        await pilot.press("f6")
        shown = await wait_for(pilot, "No run chosen")
        assert "press t" in shown

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_a_run_without_a_saved_state_cannot_be_tried_and_says_so(make_run, root):
    make_run(name="one", events=30)

    async def scenario(pilot):
        await wait_for(pilot, "died")
        await pilot.press("t")
        await wait_for(pilot, "The customer is")
        assert isinstance(pilot.app.screen, TryIt)
        await pilot.press("f9")
        await wait_for(pilot, "has saved no state yet")

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_model_that_cannot_be_had_is_a_dialog_with_the_fix(make_run, root, tmp_path):
    run = make_run(name="one", model=str(tmp_path / "gone"))
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "best.safetensors").write_bytes(b"")

    async def scenario(pilot):
        pilot.app.open_try(run)
        await wait_for(pilot, "Generate F9")
        await pilot.click("#generate")
        shown = await wait_for(pilot, "What to do", 30)
        assert "Traceback" not in shown

    drive(MlxzoApp(root=str(root)), scenario)


def test_prompts_are_answered_by_one_process_until_the_screen_is_left(root, tmp_path):
    run, _ = tuned_run(root, "lora", tiny_folder(tmp_path / "model"))

    async def scenario(pilot):
        pilot.app.open_try(run)
        await wait_for(pilot, "Generate F9")
        screen = pilot.app.screen
        screen.query_one(TextArea).text = "What a great"
        screen.query_one("#tokens").value = "4"
        await pilot.press("f9")
        await wait_for(pilot, lambda: _said(pilot) >= {"base", "tuned"}, 120)
        await wait_for(pilot, lambda: not screen._owed)
        first = screen._child
        # A prompt in the middle of an answer takes its place, and nothing is loaded again.
        screen.query_one("#tokens").value = "4000"
        await pilot.press("f9")
        await wait_for(pilot, "base model speaks")
        screen.query_one(TextArea).text, screen.query_one("#tokens").value = "The film", "4"
        await pilot.press("f9")
        await wait_for(pilot, lambda: not screen._owed and "The film" in _panel(pilot, "tuned"))
        assert screen._child is first and first.running and "What" not in _panel(pilot, "base")
        # Another state of the run is another model.
        os.utime(run.path / BEST_STATE, (1, 1))
        await pilot.press("f9")
        await wait_for(pilot, lambda: screen._child is not first and not screen._owed, 120)
        assert not first.running
        second = screen._child
        await pilot.press("f1", "escape")
        assert second.running
        await pilot.press("f2")
        await wait_for(pilot, lambda: not second.running)

    drive(MlxzoApp(root=str(root)), scenario)


def _panel(pilot, name):
    """The text in a panel of answers."""
    return str(pilot.app.screen.query_one(f"#{name} Static").content)


def _said(pilot):
    return {name for name in ("base", "tuned") if len(_panel(pilot, name)) > len("What a great")}


def test_the_palette_offers_every_action_of_the_screen(make_run, root):
    make_run(name="one")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        await pilot.press("ctrl+p", *"copy comm")
        await wait_for(pilot, "copies the command line")
        await pilot.press("enter")
        await wait_for(pilot, "mlxzo train --model")

    drive(MlxzoApp(root=str(root)), scenario)


def test_every_key_at_the_bottom_can_be_clicked(make_run, root):
    make_run(name="one")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        keys = pilot.app.screen.query_one(Keys)
        line = (await wait_for(pilot, "Sort")).splitlines()[-1]
        await pilot.click(keys, offset=(line.index("Sort"), 0))
        await wait_for(pilot, "by tuned")
        await pilot.click(keys, offset=(line.index("Help"), 0))
        await wait_for(pilot, "─ Help ─")

    drive(MlxzoApp(root=str(root)), scenario)


def test_samples_say_what_was_right(root, make_run):
    run = make_run(events=0)
    item = {"prompt": "The customer is", "answer": " happy", "right": " unhappy", "share": 0.9}
    before, after = events.Samples("validation", [item]), events.Samples("validation", [{**item, "answer": " unhappy"}])
    run.events_path.write_text("".join(events.to_json(e, 1.0) + "\n" for e in (before, after)))
    assert json.loads(run.events_path.read_text().splitlines()[0])["items"] == [item]

    async def scenario(pilot):
        shown = await wait_for(pilot, "✗ before happy 90 %")
        assert "✓ now    unhappy" in shown

    drive(MlxzoApp(root=str(root), run=run), scenario)
