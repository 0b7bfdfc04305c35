"""What files, names and models hold is shown and never executed by the terminal, whatever widget shows it."""

from __future__ import annotations

import asyncio
import time

import pytest
from rich.segment import Segment
from textual.color import Color
from textual.widgets import Static

from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory
from tests.hostile import HOSTILE, HOSTILE_NAME, acting
from tui.app import MlxzoApp
from tui.widgets.text import PrintableText

from .driving import drive, screen_text, wait_for


def test_the_filter_keeps_the_width_and_everything_else():
    segments = [Segment(f"a{HOSTILE}日本\u3000é\n"), Segment("plain")]
    hostile, plain = PrintableText().apply(segments, Color(0, 0, 0))
    assert not acting(hostile.text) and hostile.text.startswith("a]52;c;cm0=[2J2J") and "日本\u3000é" in hostile.text
    assert hostile.cell_length == segments[0].cell_length and plain is segments[1]


@pytest.fixture
def hostile_run(make_run) -> RunDirectory:
    run = make_run(events=0, name="run", model=HOSTILE, task=HOSTILE, data=HOSTILE)
    story = (
        events.Loaded(HOSTILE, HOSTILE, 1, 1, 1, "", HOSTILE, 1, 1, 1, 1),
        events.Note(HOSTILE),
        events.Samples("validation", [{"prompt": HOSTILE, "answer": HOSTILE, "right": HOSTILE, "share": 0.5}]),
        events.Population(1, [0.5], 0.1, 0.5, [{"prompt": HOSTILE, "best": HOSTILE, "median": HOSTILE}]),
        events.Evaluated("zero-shot", "validation", 0, HOSTILE, 0.5, 1.0, 4, None, 1.0, True, {HOSTILE: 1.0}),
        events.Failed(HOSTILE, HOSTILE, HOSTILE, [HOSTILE], 4),
    )
    run.events_path.write_text("".join(events.to_json(event, time.time()) + "\n" for event in story))
    return run


def test_no_screen_lets_control_characters_through(hostile_run, root):
    shown: list[str] = []

    async def scenario(pilot):
        app = pilot.app
        await wait_for(pilot, "✗ failed")
        shown.append(screen_text(pilot))
        for mode in ("monitor", "race", "try_it", "setup", "runs"):
            if mode == "monitor":
                app.open_run(hostile_run)
                await wait_for(pilot, "Members at step 1:")
            else:
                app.switch_mode(mode)
            await pilot.pause()
            await asyncio.sleep(0.1)
            shown.append(screen_text(pilot))
        app.notify(HOSTILE, title=f"title {HOSTILE}")
        # A text that nobody has cleaned.
        app.screen.query_one("#run-details", Static).update(f"unclean {HOSTILE_NAME}")
        await wait_for(pilot, "unclean ]52;c;cm0=", "title ]52;c;cm0=")
        shown.append(screen_text(pilot))

    drive(MlxzoApp(root=str(root)), scenario)
    assert not acting("".join(shown))
