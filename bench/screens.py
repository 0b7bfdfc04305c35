"""Pictures of the terminal app, made by the app itself from recorded events.

python -m bench.screens docs/screens
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import RunDirectory
from tui.app import DEMO, MlxzoApp
from tui.preferences import Preferences

from .svg import portable

_SIZE = (120, 40)
Scene = Callable[[MlxzoApp, Pilot], Awaitable[None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="x".join(map(str, _SIZE)), help="columns x lines (default: 120x40)")
    parser.add_argument(
        "--race", nargs="+", metavar="RUN", help="runs for the picture of a race; without it there is none"
    )
    parser.add_argument("--reward", metavar="RUN", help="a run of es for the picture of its population")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.absolute()
    scenes: dict[str, Scene] = {"setup": _setup, "runs": _runs}
    if arguments.race:
        scenes["race"] = _race([RunDirectory.open(name) for name in arguments.race])
    if arguments.reward:
        scenes["reward"] = _monitor(RunDirectory.open(arguments.reward))
    # Within the folder, so that the pictures name none of this machine.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        scenes["monitor"] = _monitor(_recorded("runs"))
        for name, scene in scenes.items():
            # The user's own theme and panels are not those of the pictures.
            app = MlxzoApp(root="runs", preferences=Preferences(Path(folder) / "tui.json"))
            svg = asyncio.run(_shot(app, scene, (width, height)))
            (out / f"{name}.svg").write_text(svg, encoding="utf-8")


def _recorded(folder: str) -> RunDirectory:
    """The demo's run as a directory."""
    run = RunDirectory.create(RunConfig(out=folder, name="support-desk", task="support_desk", memory_cap="900MB"))
    run.events_path.write_text(DEMO.read_text(encoding="utf-8"), encoding="utf-8")
    *_, (last, _) = run.events()
    run.write_json("result.json", last.result)
    return run


async def _shot(app: MlxzoApp, scene: Scene, size: tuple[int, int]) -> str:
    async with app.run_test(size=size) as pilot:
        await scene(app, pilot)
        await pilot.pause(1.0)
        return portable(app.export_screenshot(title="mlxzo tui"))


async def _setup(app: MlxzoApp, pilot: Pilot) -> None:
    await pilot.press("f3")
    app.set_up(RunConfig(memory_cap="4GB", scope="lora"))
    await pilot.pause(2.0)


def _monitor(run: RunDirectory) -> Scene:
    async def scene(app: MlxzoApp, pilot: Pilot) -> None:
        app.open_run(run)

    return scene


async def _runs(app: MlxzoApp, pilot: Pilot) -> None:
    await pilot.press("f2")


def _race(runs: list[RunDirectory]) -> Scene:
    async def scene(app: MlxzoApp, pilot: Pilot) -> None:
        app.open_race(runs)

    return scene


if __name__ == "__main__":
    main()
