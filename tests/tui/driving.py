"""Drives the real app without a terminal, and reads off it what a user would see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest import mock

from textual.pilot import Pilot

from tui.app import MlxzoApp

# Between two looks at the screen, which is rendered for each: the first time, and at most.
_LOOK_SECONDS, _MOST_LOOK_SECONDS = 0.01, 0.1
# For a machine with much else to do, as where all tests run at once.
PATIENCE_SECONDS = 120.0
SIZES = [(80, 24), (120, 40), (200, 60)]


def drive(app: MlxzoApp, scenario: Callable[[Pilot], Awaitable[Any]], size: tuple[int, int] = (120, 40)) -> Any:
    """Runs a scenario on the app in a terminal of a size; returns what the scenario returns."""

    async def play() -> Any:
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause()
            return await scenario(pilot)

    # Textual gives up on a key or a click after 30 s.
    with mock.patch.object(Pilot._wait_for_screen, "__defaults__", (PATIENCE_SECONDS,)):
        return asyncio.run(play())


async def every_size(pilot: Pilot) -> AsyncIterator[tuple[int, int]]:
    """Makes the terminal each of the sizes in turn, as a user does who resizes it at any moment."""
    for size in SIZES:
        await pilot.resize_terminal(*size)
        yield size


async def fills(pilot: Pilot, size: tuple[int, int]) -> None:
    """Waits until every line is as wide as the terminal, and there are as many as it has."""
    await wait_for(pilot, lambda: [len(line) for line in screen_text(pilot).splitlines()] == [size[0]] * size[1])


def screen_text(pilot: Pilot) -> str:
    """The characters on the screen, line by line."""
    return "\n".join(strip.text for strip in pilot.app.screen._compositor.render_strips())


async def wait_for(pilot: Pilot, *wanted: str | Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> str:
    """Waits until all texts are on the screen and all conditions hold; fails with the screen where they never do.

    What belongs together may be painted one part after the other: ask for it in one call, and do not search the screen
    that a call for another text returned.
    """
    limit, look = time.monotonic() + seconds, _LOOK_SECONDS
    while time.monotonic() < limit:
        shown = screen_text(pilot)
        if all(each() if callable(each) else each in shown for each in wanted):
            return shown
        # Not pilot.pause, which asks every widget whether it is done: here only what is seen counts.
        await asyncio.sleep(look)
        look = min(1.5 * look, _MOST_LOOK_SECONDS)
    missing = [each for each in wanted if callable(each) or each not in screen_text(pilot)]
    raise AssertionError(f"not on the screen after {seconds} s: {missing}\n{screen_text(pilot)}")
