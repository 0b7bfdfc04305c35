"""What the terminal app costs: a run of 20,000 steps on the screen, five events a second, and keys.

python -m bench.tui

Times are processor time of the app's own process, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

from mlxzo import events
from mlxzo.config import RunConfig
from mlxzo.runs import RunDirectory
from tui.app import MlxzoApp

_STEPS, _RATE, _SECONDS = 20_000, 5, 20
_STEP = events.Step(
    1, 2 * _STEPS, 1.0, 1.0, 0.1, 0.5, 0.2, 512, 5.0, 2500.0, 100.0, 600_000_000, 650_000_000, 10_000_000
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(RunConfig(out=folder, name="long"))
        _append(run, 1, _STEPS)
        for name, value in asyncio.run(_measure(folder, run)).items():
            print(json.dumps({"benchmark": "tui", "figure": name, "value": round(value, 4)}))


async def _measure(folder: str, run: RunDirectory) -> dict[str, float]:
    app = MlxzoApp(root=folder, run=run)
    began = time.process_time()
    async with app.run_test(size=(200, 60)) as pilot:
        while app.current.history.step is None:
            await pilot.pause(0.05)
        await pilot.pause(1.0)
        found = {"seconds until 20,000 steps are shown": time.process_time() - began}
        spent, wall = time.process_time(), time.perf_counter()
        for number in range(_RATE * _SECONDS):
            _append(run, _STEPS + number + 1, 1)
            await asyncio.sleep(1 / _RATE)
        found["share of a core at 5 events a second"] = (time.process_time() - spent) / (time.perf_counter() - wall)
        chart = app.screen.query_one("#loss")
        keys = []
        for _ in range(20):
            start = time.process_time()
            chart.action_zoom(0.8)
            chart.render_line(0)
            keys.append(time.process_time() - start)
        found["seconds from a key to a drawn chart"] = statistics.median(keys)
    return found


def _append(run: RunDirectory, first: int, count: int) -> None:
    with Path(run.events_path).open("a", encoding="utf-8") as file:
        for step in range(first, first + count):
            loss = 1 + math.sin(step * 0.7) * 0.3 + 1000 / (step + 500)
            event = dataclasses.replace(_STEP, step=step, loss=loss, smoothed_loss=1 + 1000 / (step + 500))
            file.write(events.to_json(event, 1e9 + step) + "\n")


if __name__ == "__main__":
    main()
