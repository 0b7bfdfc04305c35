"""Steps, example passes and seconds of runs until their validation loss is that of another run at its end.

    python -m bench.passes --reference runs/spsa-0 runs/spsa-1 --runs runs/rsgn-0 runs/rsgn-1

The runs are paired in the order given. An example pass is one example through what the step computes: the whole model,
or what comes after the frozen layers, whose output is computed once an example and counted beside it. Seconds are those
of training steps. Between two evaluations nothing is interpolated.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bench.report import emit, table
from mlxzo.core.events import Step
from mlxzo.core.run_directory import RunDirectory
from mlxzo.core.run_history import RunHistory


@dataclass(frozen=True)
class Point:
    """A run after an evaluation: the steps, example passes and training seconds up to it."""

    step: int
    example_passes: int
    seconds: float
    loss: float


def points_of(path: Path) -> list[Point]:
    """The evaluations of a run on its validation split, the one before training first.

    Raises:
        ConfigError: there is no run at `path`.
    """
    timed = list(RunDirectory.open(path).events())
    # A resumed run repeats steps.
    steps = {event.step: event.example_passes for event, _ in timed if isinstance(event, Step)}
    passes = [0, *accumulate(steps[step] for step in sorted(steps))]
    return [
        Point(each.step, passes[each.step], each.training_seconds, each.evaluation.loss)
        for each in RunHistory.read(timed).validation
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", nargs="+", type=Path, required=True, metavar="RUN")
    parser.add_argument("--runs", nargs="+", type=Path, required=True, metavar="RUN")
    arguments = parser.parse_args()
    rows = []
    for reference, run in zip(arguments.reference, arguments.runs, strict=True):
        end = points_of(reference)[-1]
        reached = next((point for point in points_of(run) if point.loss <= end.loss), None)
        emit("passes", reference=reference.name, run=run.name, end=vars(end), reached=reached and vars(reached))
        values = [run.name, f"{end.loss:.3f}", str(end.example_passes), f"{end.seconds:.0f}"]
        if reached is None:
            rows.append([*values, "not reached", "", ""])
        else:
            ratio = end.example_passes / max(1, reached.example_passes)
            rows.append([*values, str(reached.example_passes), f"{reached.seconds:.0f}", f"{ratio:.1f}"])
    header = ["run", "loss of the reference", "its passes", "its s", "passes to that loss", "s", "ratio of the passes"]
    table(header, rows)


if __name__ == "__main__":
    main()
