"""Runs on disk for the app to show, made of recorded events, and workers that behave like real ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

# Before textual is imported, which reads them once: every frame that is drawn costs, and no test looks at one between.
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_FPS", "15")

from mlxzo.core.config import RunConfig
from mlxzo.core.run_directory import RunDirectory
from mlxzo.experiments import queue
from mlxzo.runtime.supervisor import Supervisor
from tests.warm_workers import warm_python
from tests.workers import PRELUDE
from tui import feed
from tui.child import Child
from tui.feed import RunFeed

# The events of a run of 120 steps, thinned by bench.demo.
RECORDED = Path(__file__).parent / "recorded.jsonl"


@pytest.fixture(autouse=True)
def _own_preferences(request, monkeypatch, tmp_path):
    """What one test chooses in the app is not chosen in the next."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("MLXZO_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def _warm_commands(monkeypatch):
    """The app's child processes are forked from one that has imported MLX."""
    monkeypatch.setitem(Child.start.__kwdefaults__, "_command", (warm_python(), "-P", "-m", "mlxzo"))


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder of runs, still empty."""
    return tmp_path / "runs"


@pytest.fixture
def make_run(root):
    """Makes runs: a configuration, and the recorded events as far as they are to have come."""

    def make(*, events: int | None = None, **options) -> RunDirectory:
        run = RunDirectory.create(RunConfig(out=str(root), **options))
        lines = RECORDED.read_text(encoding="utf-8").splitlines()[:events]
        if lines:
            run.events_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if events is None:
            run.write_json("result.json", json.loads(lines[-1])["result"])
        return run

    return make


# What a worker does with its commands, without the models.
_WORKER = (
    PRELUDE
    + """
from mlxzo.runtime.control import Inbox
from pathlib import Path
from typing import Any
run = Path(run)
inbox = Inbox(run / "commands.jsonl")
def obey():
    for command in inbox.take():
        if command == "pause": emit("paused", step=1)
        if command == "continue": emit("continued", step=1, seconds=1.0)
        if command == "evaluate": emit("note", text="evaluated as asked")
        if command == "stop":
            emit("failed", title="Interrupted", message="stopped", fix="", details=[], exit_code=130)
            sys.exit(130)
def interrupted(number, frame):
    emit("failed", title="Interrupted", message="stopped", fix="", details=[], exit_code=130)
    sys.exit(130)
signal.signal(signal.SIGINT, interrupted)
"""
)


@pytest.fixture
def worker(tmp_path):
    """Starts the worker of a run, made of a few lines, under the app's own supervision; returns its feed."""
    started = []

    def start(run: RunDirectory, program: str) -> RunFeed:
        script = tmp_path / f"worker{len(started)}.py"
        script.write_text(_WORKER + program)
        watched = RunFeed(run)
        watched.start(_command=[sys.executable, str(script), str(run.path)])
        started.append(watched)
        return watched

    yield start
    for watched in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(watched.supervision.pid, signal.SIGKILL)
        watched.supervision.join(60.0)


@pytest.fixture
def fake_workers(tmp_path, monkeypatch):
    """Has the runs that the app starts, alone or in a queue, done by workers that are made of a few lines."""
    script = tmp_path / "series_worker.py"

    def supervisor(run: RunDirectory, *, _command: object = None, **options: Any) -> Supervisor:
        return Supervisor(run, **options, _command=[sys.executable, str(script), str(run.path)])

    def use(program: str) -> None:
        script.write_text(_WORKER + program)
        for module in (queue, feed):
            monkeypatch.setattr(module, "Supervisor", supervisor)

    return use
