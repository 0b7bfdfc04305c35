"""What the app remembers: theme and panels come back, and no file can keep it from opening."""

import pytest

from tui.app import MlxzoApp
from tui.preferences import Preferences

from .driving import drive, screen_text, wait_for


def test_theme_and_panels_come_back_in_the_next_session(make_run, root, tmp_path):
    run, path = make_run(), tmp_path / "home" / "tui.json"

    def session(scenario):
        drive(MlxzoApp(root=str(root), run=run, preferences=Preferences(path)), scenario)

    async def change(pilot):
        await wait_for(pilot, "1 Loss")
        pilot.app.theme = "mlxzo-light"
        await pilot.press("1", "4")
        await wait_for(pilot, "4 Speed")

    async def find(pilot):
        await wait_for(pilot, "4 Speed", lambda: "1 Loss" not in screen_text(pilot))
        assert pilot.app.theme == "mlxzo-light"

    session(change)
    session(find)


@pytest.mark.parametrize(
    "content", ['{"theme": "mlx', "[1]", '{"theme": 3, "panels": {"loss": "no"}}', '{"theme": "x"}']
)
def test_a_broken_file_is_ignored(root, tmp_path, content):
    path = tmp_path / "tui.json"
    path.write_text(content)

    async def scenario(pilot):
        await wait_for(pilot, "1 Loss")
        assert pilot.app.theme == "mlxzo" and "Traceback" not in screen_text(pilot)

    drive(MlxzoApp(root=str(root), demo=True, preferences=Preferences(path)), scenario)


def test_a_home_that_cannot_be_written_disturbs_nobody(tmp_path):
    (tmp_path / "file").write_text("")
    preferences = Preferences(tmp_path / "file" / "tui.json")
    preferences.theme = "mlxzo-light"
    assert preferences.theme == "mlxzo-light"
