"""A picture of a run as the terminal showed it, drawn from its recorded events by the code that shows live ones.

python -m bench.picture runs/RUN docs/quickstart.svg
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from mlxzo.cli.console import RunView, key_values, summary_rows
from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory
from mlxzo.core.run_history import RunHistory

_WIDTH = 156


class _Clock:
    """The time of the event at hand, so that plain progress lines are as far apart as they were."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("svg", type=Path)
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run)
    # Not a terminal: the lines that a live display replaces would leave nothing to see.
    console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_terminal=False)
    clock = _Clock()
    view, history = RunView(console, clock=clock), RunHistory()
    seed = run.config.seed
    console.print("$ mlxzo quickstart" + (f" --seed {seed}" if seed else ""), style="bold", highlight=False)
    last_step = 0.0
    for event, time in run.events():
        clock.now = time
        history.add(event, time)
        if isinstance(event, events.Step):
            # One line in a while tells as much as all of them.
            if event.step != event.steps and time - last_step < 25:
                continue
            last_step = time
        view.show(event)
    console.print(key_values([*summary_rows(history), ("run", f"runs/{run.id}")]))
    arguments.svg.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(arguments.svg), title="mlxzo quickstart")


if __name__ == "__main__":
    main()
