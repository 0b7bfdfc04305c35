"""The app where function keys need a second key, colours are 256, and the terminal does not copy."""

from __future__ import annotations

import asyncio
from itertools import combinations

import pytest
from rich.color import Color, ColorSystem
from textual.binding import Binding

from tui.app import MlxzoApp
from tui.screens.help import HelpDialog
from tui.screens.monitor import Monitor
from tui.screens.race import Race
from tui.screens.runs import Runs
from tui.screens.setup import Setup
from tui.screens.try_it import TryIt
from tui.themes import curve_colours, themes


@pytest.mark.parametrize("owner", [MlxzoApp, Runs, Setup, Monitor, Race, TryIt, HelpDialog])
def test_every_function_key_has_a_letter_beside_it(owner):
    keys: dict[str, set[str]] = {}
    for binding in Binding.make_bindings(owner.BINDINGS):
        keys.setdefault(binding.action, set()).add(binding.key)
    for action, found in keys.items():
        if any(key[0] == "f" and key[1:].isdigit() for key in found):
            assert any(len(key) == 1 or key == "question_mark" for key in found), action


def test_letters_open_screens_and_help_and_what_is_copied_reaches_the_mac(root, mac, monkeypatch, tmp_path):
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\ncat > '{tmp_path}/copied'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    async def scenario():
        app = MlxzoApp(root=str(root))
        async with app.run_test() as pilot:
            await pilot.press("M")
            assert isinstance(app.screen, Monitor)
            await pilot.press("question_mark")
            assert isinstance(app.screen, HelpDialog)
            await pilot.press("question_mark")
            assert isinstance(app.screen, Monitor)
            app.copy("mlxzo train --task «sst2»")

    asyncio.run(scenario())
    assert (tmp_path / "copied").read_text() == "mlxzo train --task «sst2»"


@pytest.mark.parametrize("theme", themes(truecolor=False), ids=lambda theme: theme.name)
def test_256_colours_keep_surfaces_and_curves_apart(theme):
    def shown(colour: str) -> tuple[int, int, int]:
        return Color.parse(colour).downgrade(ColorSystem.EIGHT_BIT).get_truecolor()

    surfaces = [shown(colour) for colour in (theme.background, theme.surface, theme.panel)]
    assert all(red == green == blue for red, green, blue in surfaces)
    assert len(set(surfaces)) == 3
    text, backs = shown(theme.foreground), surfaces
    assert min(contrast(text, back) for back in backs) > 7
    curves = [shown(colour) for colour in curve_colours(dark=theme.dark).values()]
    for one, other in combinations(curves, 2):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) >= 80
    # The row under the cursor, where the theme has its own colours for it.
    if cursor := theme.variables.get("block-cursor-background"):
        assert contrast(shown(theme.variables["block-cursor-foreground"]), shown(cursor)) > 4.5
        assert Color.parse(cursor).get_truecolor() == shown(cursor)
    # Curves are drawn in thin lines, for which 3 is the least of WCAG.
    assert min(contrast(curve, surfaces[0]) for curve in curves) > 2.5


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Contrast ratio by WCAG 2."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
