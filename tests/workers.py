"""Workers without models, for tests to go on with, and how what is left of workers is ended."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from mlxzo.core.run_directory import list_runs
from mlxzo.runtime.supervisor import Supervisor

# The same line to events.jsonl and to the pipe. `run` is the run directory.
PRELUDE = """
import json, os, signal, subprocess, sys, time
run = sys.argv[1]
def emit(event, **fields):
    line = json.dumps({"event": event, "time": time.time(), **fields})
    with open(f"{run}/events.jsonl", "a") as log: log.write(line + "\\n")
    try: print(line, flush=True)
    except BrokenPipeError: pass
def step(number, steps=9):
    emit("step", step=number, steps=steps, loss=0.5, smoothed_loss=0.5, lr=0.1, directional_derivative=0.1,
         seconds=0.1, tokens=8, steps_per_second=10.0, tokens_per_second=80.0, eta_seconds=1.0,
         active_bytes=1000000, peak_bytes=2000000, cache_bytes=0)
def finish(): emit("finished", result={"ok": True})
def fail(title="Data", code=4):
    emit("failed", title=title, message="by design", fix="", details=[], exit_code=code)
    sys.exit(code)
"""


def end(supervisors: Iterable[Supervisor]) -> None:
    """Kills what is left of some workers."""
    for supervisor in supervisors:
        while supervisor.running:
            os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.poll(0.1)


def kill_workers(root: Path) -> None:
    """Kills whatever still works at a run in `root`, whoever started it."""
    for run in list_runs(root):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(run.lock_path.read_text()), signal.SIGKILL)
