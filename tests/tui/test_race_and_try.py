"""Runs on shared axes, one after the other; and a tuned model beside its base."""

import asyncio
import fcntl
import json
import os
import sys

import pytest

from mlxzo.core import events
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import BEST_STATE, RunDirectory
from tests.engine.test_export import tuned_run
from tests.tiny import tiny_folder
from tui.app import MlxzoApp
from tui.child import Child
from tui.race_runner import race
from tui.screens.try_it import Prompt, TryIt
from tui.widgets.chart import Chart
from tui.widgets.keys import Keys

from .driving import PATIENCE_SECONDS, drive, every_size, fills, screen_text, wait_for


def test_marked_runs_race_on_shared_axes_at_every_size(make_run, root):
    make_run(name="forward")
    make_run(name="backward", method="bp")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        await pilot.press("space", "space", "c")
        async for size in every_size(pilot):
            for words in ("Contestants", "● backward", "▲ forward", "cap 900.0 MB", "74.0 %", "62.8 %"):
                await wait_for(pilot, words)
            await wait_for(pilot, "majority class 50.0 %")
            await fills(pilot, size)
        assert pilot.app.screen.query_one("#race-accuracy", Chart).title == "Validation accuracy"
        await pilot.press("x")
        await wait_for(pilot, lambda: len(pilot.app.race) == 1)

    drive(MlxzoApp(root=str(root)), scenario)


def test_names_in_the_legend_are_not_broken(make_run, root):
    names = [f"a-run-with-a-name-of-some-length-{number}" for number in range(3)]
    for name in names:
        make_run(name=name)

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        pilot.app.open_race([RunDirectory(root / name) for name in names])
        legend = [["●", names[0], "▲", names[1]], ["■", names[2]]]
        await wait_for(pilot, lambda: [line.split() for line in screen_text(pilot).splitlines()[1:3]] == legend)

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_time_counts_from_the_start_of_training(make_run, root):
    run = make_run(name="one")

    async def scenario(pilot):
        pilot.app.open_race([run])
        await wait_for(pilot, "● one")
        history = pilot.app.race[0].history
        for name in ("race-accuracy", "race-loss", "race-memory"):
            chart = pilot.app.screen.query_one(f"#{name}", Chart)
            await wait_for(pilot, lambda chart=chart: bool(chart._lines))
            assert chart._extent()[0] < 20.0 and chart._extent()[1] == pytest.approx(history.seconds, abs=20.0)
        assert history.seconds < history.elapsed - 60

    drive(MlxzoApp(root=str(root)), scenario)


def test_removing_a_contestant_that_goes_on_asks(make_run, root):
    run = make_run(name="one", events=90)

    async def scenario(pilot):
        pilot.app.open_race([run])
        await wait_for(pilot, "▶ training")
        await pilot.press("x", "enter")
        await wait_for(pilot, "● one")
        assert len(pilot.app.race) == 1
        await pilot.press("x", "right", "enter")
        await wait_for(pilot, "No race yet")

    with run.lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        drive(MlxzoApp(root=str(root)), scenario)


def test_a_race_measured_by_its_loss_has_numbers_on_its_axis(make_run, root):
    """A loss of 3.2 stood on the shared axis as 320 %."""
    for name, loss in (("one", 3.2), ("two", 2.8)):
        first, last = (
            events.Evaluated(kind, "validation", step, "loss", loss - step / 10, loss, 50, None, 1.0, True)
            for step, kind in enumerate(("zero-shot", "validation"))
        )
        lines = [events.to_json(first, 1.7e9), events.to_json(last, 1.7e9 + 60)]
        make_run(name=name, events=0).events_path.write_text("\n".join(lines) + "\n")

    async def scenario(pilot):
        await wait_for(pilot, "two")
        await pilot.press("space", "space", "c")
        await wait_for(pilot, "3.100")
        chart = pilot.app.screen.query_one("#race-accuracy", Chart)
        await wait_for(pilot, lambda: chart._strips is not None)
        assert chart.title == "Validation loss" and "%" not in "".join(strip.text for strip in chart._strips)
        assert chart.scale.value(3.2) == "3.200"

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_race_gives_each_method_its_own_defaults_and_both_the_rest(tmp_path):
    values = {"lr": "0.02", "batch_size": "4", "update": "sgd", "optimizer": "adamw", "memory_cap": "2GB"}
    values |= {"steps": "50", "seed": "3", "out": str(tmp_path), "method": "mezo", "activation_cache": "off"}
    mezo, bp = (each.config for each in race(values).runs())
    assert (mezo.method, mezo.lr, mezo.update, mezo.optimizer) == ("mezo", 0.02, "sgd", "adam")
    assert (bp.method, bp.lr, bp.update, bp.optimizer) == (
        "bp",
        RunConfig(method="bp").resolved().lr,
        None,
        "adamw",
    )
    for config in (mezo, bp):
        shared = (config.batch_size, config.memory_cap, config.steps, config.seed, config.activation_cache)
        assert shared == (4, "2GB", 50, 3, "off")
    # A rate given for backpropagation is none for MeZO.
    mezo, bp = (each.config for each in race({**values, "method": "bp", "max_seconds": "90"}).runs())
    assert (bp.lr, mezo.lr) == (0.02, RunConfig(update="sgd").resolved().lr)
    assert mezo.max_seconds == bp.max_seconds == 90


def test_a_race_from_setup_trains_both_methods_in_turn_and_shows_them(root, fake_workers):
    """The second of them fails, and the first is none the worse for it."""
    fake_workers(
        "import yaml\n"
        "config = yaml.safe_load((run / 'config.yaml').read_text())\n"
        "emit('phase', phase='train')\n"
        "for i in range(1, 6): step(i)\n"
        "if config['method'] == 'mezo': finish()\n"
        "else: emit('failed', title='Does not fit', message='it takes too much', fix='less', details=[], exit_code=3)\n"
    )

    async def scenario(pilot):
        await pilot.press("f3")
        await wait_for(pilot, "ready to start")
        await pilot.press("f8")
        await wait_for(pilot, "✓ finished", "▲ ✗ it takes too much", lambda: not pilot.app.racing.running)
        await wait_for(pilot, "smollm2-135m bp", "smollm2-135m mezo", "5/9")
        assert [feed.run.config.method for feed in pilot.app.race] == ["mezo", "bp"]
        # Nothing is left to ask about.
        assert not pilot.app.started_here()

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_race_can_be_stopped_and_closing_asks_about_it(make_run, root, fake_workers):
    fake_workers("emit('phase', phase='train'); step(1)\nwhile True: time.sleep(0.05); obey()\n")

    async def scenario(pilot):
        await pilot.press("f3")
        await wait_for(pilot, "ready to start")
        await pilot.click("#race")
        await wait_for(pilot, "1/9")
        # Runs that are marked stand beside it, and do not take its place.
        pilot.app.open_race([make_run(name="other")])
        await wait_for(pilot, "■ other")
        assert len(pilot.app.race) == 3
        await pilot.press("ctrl+q")
        await wait_for(pilot, "a race, run 1 of 2")
        await pilot.press("escape", "s")
        await wait_for(pilot, lambda: not pilot.app.racing.running)
        shown = await wait_for(pilot, "■ interrupted", "not started")
        assert "Traceback" not in shown

    drive(MlxzoApp(root=str(root)), scenario)


def test_nothing_to_race_or_to_try_says_how_to_choose(root):
    async def scenario(pilot):
        await pilot.press("f5")
        await wait_for(pilot, "No race yet")
        await pilot.press("f6")
        await wait_for(pilot, "No run to try yet", "F3 or S")

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_a_run_without_a_saved_state_cannot_be_tried_and_says_so(make_run, root):
    make_run(name="one", events=30)

    async def scenario(pilot):
        await wait_for(pilot, "died")
        await pilot.press("t")
        await wait_for(pilot, "● labels")
        assert isinstance(pilot.app.screen, TryIt)
        await pilot.press("f9")
        await wait_for(pilot, "has no checkpoint yet")

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_model_that_cannot_be_had_is_a_dialog_with_the_fix(make_run, root, tmp_path):
    run = make_run(name="one", model=str(tmp_path / "gone"))
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "best.safetensors").write_bytes(b"")

    async def scenario(pilot):
        pilot.app.open_try(run)
        await wait_for(pilot, "Ask both F9")
        await pilot.click("#ask")
        shown = await wait_for(pilot, "What to do")
        assert "Traceback" not in shown

    drive(MlxzoApp(root=str(root)), scenario)


def test_prompts_are_answered_by_one_process_until_the_screen_is_left(root, tmp_path):
    run, _ = tuned_run(root, "lora", tiny_folder(tmp_path / "model"))

    async def scenario(pilot):
        pilot.app.open_try(run)
        await wait_for(pilot, "Ask both F9")
        screen = pilot.app.screen
        # A task with labels: their probabilities, for a text that takes the place of the row that is shown.
        await wait_for(pilot, "● labels")
        await wait_for(pilot, lambda: isinstance(pilot.app.focused, Prompt))
        await pilot.press(*"What a great", "enter")
        words = ("What a great", "negative", "positive", lambda: screen_text(pilot).count(" %") >= 6)
        shown = await wait_for(pilot, *words)
        assert shown.count("What a great") == 1
        await wait_for(pilot, lambda: not screen._pending)
        await pilot.press("f8")
        await wait_for(pilot, "gives each label")
        await pilot.press("f9")
        await wait_for(pilot, lambda: "✓ right" in screen_text(pilot) or "✗ the row says" in screen_text(pilot))
        screen.query_one("#answer-kind").focus()
        await pilot.press("right")
        await wait_for(pilot, "continues the prompt here")
        assert screen.query_one("#prompt").text.endswith("The customer is")
        screen.query_one("#prompt").text = "What a great"
        screen.query_one("#tokens").value = "4"
        await pilot.press("f9")
        await wait_for(pilot, lambda: _said(pilot) >= {"base", "tuned"})
        await wait_for(pilot, lambda: not screen._pending)
        first = screen._child
        # A prompt before the end of an answer takes its place, and nothing is loaded again.
        screen.query_one("#tokens").value = "4000"
        screen.action_ask()
        # Not wait_for: the tiny model may end its answer before the screen is looked at.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not screen._pending:
                await asyncio.sleep(0)
        screen.query_one("#prompt").text, screen.query_one("#tokens").value = "The film", "4"
        screen.action_ask()
        await wait_for(pilot, lambda: not screen._pending and "The film" in _panel(pilot, "tuned"))
        assert screen._child is first and first.running and "What" not in _panel(pilot, "base")
        # Another state of the run is another model.
        os.utime(run.path / BEST_STATE, (1, 1))
        await pilot.press("f9")
        await wait_for(pilot, lambda: screen._child is not first and not screen._pending)
        assert not first.running
        second = screen._child
        await pilot.press("f1", "escape")
        assert second.running
        await pilot.press("f2")
        await wait_for(pilot, lambda: not second.running)

    drive(MlxzoApp(root=str(root)), scenario)


LABELLER = """
import json, sys
assert sys.argv[1] == "generate" and "--serve" in sys.argv
for line in sys.stdin:
    shares = {"negative": 0.25, "positive": 0.75}
    for speaker in ("base", "tuned") if "row" in json.loads(line) else ():
        print(json.dumps({"speaker": speaker, "label": "positive", "probabilities": shares}), flush=True)
    print(json.dumps({"done": True}), flush=True)
"""


def test_a_newcomer_gets_the_labels_of_a_typed_text_in_four_keys(root, tmp_path, monkeypatch, fake_workers):
    """From the first screen; the text itself is not counted."""
    fake_workers(
        "emit('phase', phase='train')\nfor i in range(1, 4): step(i)\n"
        "(run / 'checkpoints').mkdir(exist_ok=True)\n(run / 'checkpoints/best.safetensors').write_bytes(b'')\n"
        "finish()"
    )
    script = tmp_path / "labeller.py"
    script.write_text(LABELLER)
    monkeypatch.setitem(Child.start.__kwdefaults__, "_command", (sys.executable, "-I", str(script)))

    async def scenario(pilot):
        await wait_for(pilot, "There are no runs in")
        keys = ["enter", "f9", "f6", "enter"]
        await pilot.press(keys.pop(0))
        await wait_for(pilot, "ready to start")
        await pilot.press(keys.pop(0))
        await wait_for(pilot, "✓ finished")
        await pilot.press(keys.pop(0))
        await wait_for(pilot, lambda: isinstance(pilot.app.focused, Prompt))
        await pilot.press(*"Lovely cup", keys.pop(0))
        assert not keys
        # Both models have answered, with a line for each label.
        twice = ("positive 75.0 %", "negative", " 25.0 %")
        words = ("Lovely cup", "Base", "Tuned")
        await wait_for(pilot, *words, lambda: all(screen_text(pilot).count(each) == 2 for each in twice))

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


def test_the_newest_run_with_a_checkpoint_is_tried_and_a_row_can_be_taken(make_run, root):
    make_run(name="older")
    newest = make_run(name="newest")
    (newest.path / "checkpoints").mkdir()
    (newest.path / "checkpoints" / "best.safetensors").write_bytes(b"")

    async def scenario(pilot):
        await wait_for(pilot, "finished")
        await pilot.press("f6")
        await wait_for(pilot, " newest ")
        await wait_for(pilot, lambda: isinstance(pilot.app.focused, Prompt))
        first = pilot.app.focused.text
        await pilot.press("f8")
        await wait_for(pilot, lambda: pilot.app.focused.text not in ("", first))
        # What is typed takes its place.
        await pilot.press("x")
        assert pilot.app.focused.text == "x"
        async for size in every_size(pilot):
            await wait_for(pilot, "Ask both F9")
            await fills(pilot, size)

    drive(MlxzoApp(root=str(root)), scenario)


def test_a_row_of_several_fields_has_a_box_for_each(make_run, root):
    run = make_run(name="one", task="boolq")

    async def scenario(pilot):
        pilot.app.open_try(run)
        for words in ("─ passage ", "─ question ", "do bees sleep"):
            await wait_for(pilot, words)
        assert "tokens" not in screen_text(pilot)

    drive(MlxzoApp(root=str(root)), scenario, (80, 24))


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
        shown = await wait_for(pilot, "✗ before happy 90 %", "✓ now    unhappy")
        # The prompt is whole.
        assert "…The customer" not in shown

    drive(MlxzoApp(root=str(root), run=run), scenario)
