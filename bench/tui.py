"""What the terminal app costs, in a terminal of its own: opening, keys, a run on the screen, and training beside it.

    python -m bench.tui
    python -m bench.tui --watching
    python -m bench.tui --paired --model smollm2-135m

The first command prints the time from the start of the process to the first paint and to the list of 1,000 runs, the
time from a key to what is drawn for it on every screen, with the machine at rest and with every core busy, and what the
second prints alone: the processor time that the app takes while a run goes on on its screen, which a busy machine does
not change, and the time from the death of a run's process to the words for it.

The third trains once, headless, and watches that very run with the app in turns: windows of so many steps with the app
open and without it, in the order A B B A. It prints the median seconds of a step in either, and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.report import emit, machine, table
from bench.terminal import Terminal, terminal
from mlxzo.core import events
from mlxzo.core.child_process import worker_environment
from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import RunDirectory
from tui.app import DEMO

_RUNS, _POINTS = 1000, 20_000
_SIZE = (200, 60)
# Of a run that is watched: the size of the terminal, the steps that are there, and those that come in a second.
_WATCHED = (((120, 40), 300, 0), ((120, 40), 300, 1), ((120, 40), 300, 2), (_SIZE, 300, 5), (_SIZE, _POINTS, 5))
_WATCHED_SECONDS, _DEATHS = 30, 5
_RIGHT, _DOWN = "\x1b[C", "\x1b[B"
_F = {2: "\x1bOQ", 3: "\x1bOR", 4: "\x1bOS", 5: "\x1b[15~", 6: "\x1b[17~"}
_STEP = events.Step(
    1, 2 * _POINTS, 1.0, 1.0, 0.1, 0.5, 0.2, 512, 5.0, 2500.0, 100.0, 600_000_000, 650_000_000, 10_000_000
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paired", action="store_true", help="measure training with the app open and without it")
    parser.add_argument("--watching", action="store_true", help="measure only the app while it shows a run")
    parser.add_argument("--model", default=RunConfig.model, help="model of the paired measure (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds A B B A (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="steps a window (default: %(default)s)")
    arguments = parser.parse_args()
    emit("machine", **machine())
    with tempfile.TemporaryDirectory() as folder:
        # What the user chose in the app must not count.
        os.environ["MLXZO_HOME"] = _home(Path(folder))
        if arguments.paired:
            paired(Path(folder), arguments.model, arguments.rounds, arguments.steps)
            return
        if not arguments.watching:
            opening(Path(folder) / "many")
            keys(Path(folder) / "runs")
        watching(Path(folder) / "watched")
        deaths(Path(folder) / "dead")


def opening(root: Path) -> None:
    """From the start of the process to the first screenful of a list of runs."""
    _many(root, _RUNS)
    found: dict[str, list[tuple[float, float]]] = {"Runs": [], "finished": []}
    for _ in range(5):
        with terminal("--out", str(root), folder=root) as screen:
            for text, times in found.items():
                times.append((screen.wait_for(text), screen.cpu_seconds))
    for name, times in zip(("first paint", f"first screenful of {_RUNS:,} runs"), found.values(), strict=True):
        wall, cpu = zip(*times, strict=True)
        emit(
            name,
            seconds=round(statistics.median(wall), 3),
            worst=round(max(wall), 3),
            cpu_seconds=round(statistics.median(cpu), 3),
        )


def keys(root: Path) -> None:
    """From a key to what is drawn for it, on every screen."""
    _many(root, 2)
    run = _long(root)
    rows = []
    for load in (False, True):
        with terminal("--out", str(root), str(run.path), size=_SIZE, folder=root) as screen, _busy(load):
            screen.wait_for(f"{_POINTS:,}")
            for name, found in _presses(screen).items():
                median, worst = 1000 * statistics.median(found), 1000 * max(found)
                where = "every core busy" if load else "at rest"
                emit("key to paint", screen=name, machine=where, median_ms=round(median, 1), worst_ms=round(worst, 1))
                rows.append([name, where, f"{median:.0f}", f"{worst:.0f}"])
    table(["screen", "machine", "median (ms)", "worst (ms)"], rows)


def _presses(screen: Terminal) -> dict[str, list[float]]:
    """Seconds of twenty keys on each screen; the app shows a run."""
    found = {"Monitor: zoom": [screen.press(key) for key in "+-" * 10]}
    screen.send(_F[2])
    screen.wait_for("by started")
    found["Runs: move"] = [screen.press(key) for key in (_DOWN, "\x1b[A") * 10]
    screen.send("  c")
    screen.wait_for("Contestants")
    found["Race: take the whole screen"] = [screen.press("f") for _ in range(20)]
    screen.send(_F[3])
    screen.wait_for("ready to start")
    found["Setup: choose a model"] = [screen.press(key) for key in (_DOWN, "\x1b[A") * 10]
    # From the list of models by that of tasks, the task's file and its folder to the first field of the options.
    screen.send("\t\t\t\t")
    found["Setup: move between fields"] = [screen.press("\t") for _ in range(20)]
    return found


def watching(root: Path) -> None:
    """The processor time that the app takes while a run goes on on the screen."""
    rows = []
    for number, (size, points, rate) in enumerate(_WATCHED):
        run = RunDirectory.create(RunConfig(out=str(root), name=f"run-{number}"))
        _record(run, points)
        with _worker(run), terminal("--out", str(root), str(run.path), size=size, folder=root) as screen:
            screen.wait_for(f"{points:,} of")
            # Until what is drawn late, such as the facts, is there as well.
            screen.watch(6)
            before, began, step = screen.cpu_seconds, time.perf_counter(), points
            while (elapsed := time.perf_counter() - began) < _WATCHED_SECONDS:
                if rate:
                    step += 1
                    _append(run, step, 1)
                screen.watch(1 / rate if rate else _WATCHED_SECONDS - elapsed)
            taken = (screen.cpu_seconds - before) / (time.perf_counter() - began)
        emit(
            "watching a run",
            terminal=size,
            points=points,
            steps_per_second=rate,
            cpu_seconds_a_minute=round(60 * taken, 2),
            percent_of_a_core=round(100 * taken, 2),
        )
        rows.append([f"{size[0]} x {size[1]}", f"{points:,}", f"{rate}", f"{60 * taken:.2f}", f"{100 * taken:.1f}"])
    table(["terminal", "steps shown", "steps/s", "CPU (s/min)", "share of a core (%)"], rows)


def deaths(root: Path) -> None:
    """From kill -9 of a run's process to the words for it on the screen."""
    found = []
    for number in range(_DEATHS):
        run = RunDirectory.create(RunConfig(out=str(root), name=f"run-{number}"))
        _record(run, 300)
        with _worker(run) as worker, terminal("--out", str(root), str(run.path), size=_SIZE, folder=root) as screen:
            screen.wait_for("training")
            screen.settle()
            killed = time.perf_counter()
            worker.kill()
            screen.wait_for("ended without a message")
            found.append(time.perf_counter() - killed)
    emit("death to paint", seconds=round(statistics.median(found), 2), worst=round(max(found), 2))


def paired(root: Path, model: str, rounds: int, steps: int) -> None:
    """Seconds a step of one run, with the app watching it and without, in turns."""
    command = [sys.executable, "-P", "-m", "mlxzo", "train", "--model", model, "--out", str(root), "--name", "paired"]
    # Evaluations are not steps, and steps of a run end it.
    options = ["--steps", "1000000", "--eval-every", "1000000"]
    training = subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=worker_environment(), cwd=root
    )
    run = RunDirectory(root / "paired")
    found: dict[bool, list[float]] = {False: [], True: []}
    ratios = []
    try:
        # Compiling, and the first pass over the data, which is slower than the others where layers are frozen.
        _wait_for_step(run, training, 100)
        for number in range(rounds):
            this_round: dict[bool, list[float]] = {False: [], True: []}
            for opened in (False, True, True, False):
                this_round[opened] += _window(root, run, training, steps, opened=opened)
            ratios.append(statistics.median(this_round[True]) / statistics.median(this_round[False]))
            emit("round", number=number + 1, open_over_headless=round(ratios[-1], 4))
            for opened, seconds in this_round.items():
                found[opened] += seconds
    finally:
        training.terminate()
        training.wait()
    medians = {opened: statistics.median(seconds) for opened, seconds in found.items()}
    emit(
        "training with the app open over headless",
        model=model,
        headless_seconds_a_step=round(medians[False], 4),
        open_seconds_a_step=round(medians[True], 4),
        ratio=round(statistics.median(ratios), 4),
        lowest=round(min(ratios), 4),
        highest=round(max(ratios), 4),
    )


def _window(root: Path, run: RunDirectory, training: subprocess.Popen, steps: int, *, opened: bool) -> list[float]:
    """Seconds of so many steps, after two that count for neither side."""
    with contextlib.ExitStack() as stack:
        watch = None
        if opened:
            screen = stack.enter_context(terminal("--out", str(root), str(run.path), size=_SIZE, folder=root))
            screen.wait_for("training")
            watch = screen.watch
        first = _last_step(run) + 2
        _wait_for_step(run, training, first + steps, watch or time.sleep)
    taken = {e.step: e.seconds for e, _ in run.events() if isinstance(e, events.Step)}
    return [taken[step] for step in range(first + 1, first + steps + 1)]


def _wait_for_step(run: RunDirectory, training: subprocess.Popen, step: int, wait=time.sleep) -> None:
    while _last_step(run) < step:
        if training.poll() is not None:
            raise SystemExit(f"the training process ended with code {training.returncode}")
        wait(0.5)


def _last_step(run: RunDirectory) -> int:
    last = run.last_event(events.Step)
    return last.step if isinstance(last, events.Step) else 0


def _home(folder: Path) -> str:
    """A folder of mlxzo's that has the user's models and nothing else of it."""
    from mlxzo.core.files import mlxzo_home

    home = folder / "home"
    home.mkdir()
    for path in mlxzo_home().iterdir() if mlxzo_home().is_dir() else ():
        if path.is_dir():
            (home / path.name).symlink_to(path)
    return str(home)


@contextlib.contextmanager
def _busy(load: bool) -> Iterator[None]:
    """Keeps every core busy, if asked to."""
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1) if load
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _many(root: Path, count: int) -> None:
    """So many finished runs, with the events of the recorded one."""
    run = RunDirectory.create(RunConfig(out=str(root), name="run-0000"))
    shutil.copy(DEMO, run.events_path)
    *_, (last, _) = run.events()
    run.write_json("result.json", last.result)
    for number in range(1, count):
        shutil.copytree(run.path, root / f"run-{number:04d}")


def _long(root: Path) -> RunDirectory:
    run = RunDirectory.create(RunConfig(out=str(root), name="long"))
    _append(run, 1, _POINTS)
    return run


def _record(run: RunDirectory, points: int) -> None:
    """What a recorded run told until its first step, and so many steps."""
    with DEMO.open(encoding="utf-8") as lines, run.events_path.open("w", encoding="utf-8") as file:
        file.writelines(itertools.takewhile(lambda line: not isinstance(events.from_json(line)[0], events.Step), lines))
    _append(run, 1, points)


@contextlib.contextmanager
def _worker(run: RunDirectory) -> Iterator[subprocess.Popen]:
    """A process that holds the run's lock, as a worker does, and does nothing else."""
    program = "import sys, time; from mlxzo.core.run_directory import RunDirectory; from pathlib import Path\n"
    program += "lock = RunDirectory(Path(sys.argv[1])).claim(); time.sleep(3600)"
    process = subprocess.Popen([sys.executable, "-P", "-c", program, str(run.path)], env=worker_environment())
    try:
        while not run.worker_is_alive():
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def _append(run: RunDirectory, first: int, count: int) -> None:
    with run.events_path.open("a", encoding="utf-8") as file:
        for step in range(first, first + count):
            loss = 1 + math.sin(step * 0.7) * 0.3 + 1000 / (step + 500)
            event = dataclasses.replace(_STEP, step=step, loss=loss, smoothed_loss=1 + 1000 / (step + 500))
            file.write(events.to_json(event, 1e9 + step) + "\n")


if __name__ == "__main__":
    main()
