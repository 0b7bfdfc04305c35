"""Steers a run from any process: commands are lines appended to a file in its run directory.

Whoever started the run may be gone. The worker looks at the file between steps, while it evaluates and while it is
paused. Nothing here imports MLX.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ..core.errors import ConfigError
from ..core.run_directory import RunDirectory

COMMANDS = {
    "pause": "wait after the step in hand, until `continue` or `stop`",
    "continue": "go on after a pause",
    "stop": "end after the step in hand; the best state so far is kept",
    "evaluate": "measure the weights as they are on the validation split, after the step in hand",
    "shrink": "take less memory: smaller micro-batches, with the same losses to the rounding of float32",
}


def send(run: RunDirectory, command: str) -> None:
    """Asks the run's worker to do something; returns at once. The run's events tell when it does it.

    Raises:
        ConfigError: there is no such command, the run is not running, or its directory cannot be written.
    """
    if command not in COMMANDS:
        raise ConfigError(f"a run knows no command {command!r}", f"use one of {', '.join(COMMANDS)}")
    if not run.worker_is_alive():
        raise ConfigError(
            f"the run {run.id} is not running, so it cannot {command}",
            "`mlxzo runs ls` lists the runs and their status",
        )
    # One write, so that lines of several senders do not mix. The newline before it ends what a sender that died in
    # the middle of a line may have left.
    line = "\n" + json.dumps({"command": command, "time": time.time()}) + "\n"
    try:
        descriptor = os.open(run.commands_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{run.commands_path} cannot be written: {error.strerror}", "check the folder") from None


def forget(run: RunDirectory) -> None:
    """Drops the commands that were meant for an earlier worker of the run; for whoever is about to start a new one."""
    run.commands_path.unlink(missing_ok=True)


class Inbox:
    """The commands of a file, each given out once, in the order in which they were sent."""

    def __init__(self, path: Path):
        self._path = path
        self._read_bytes = 0

    def take(self) -> list[str]:
        """The commands that came since the last call. Costs one look at the file's size where there are none.

        Unknown commands, torn lines and whatever else is no command are passed over.
        """
        try:
            size = self._path.stat().st_size
            if size == self._read_bytes:
                return []
            if size < self._read_bytes:
                # Somebody emptied the file.
                self._read_bytes = 0
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                block = file.read()
        except OSError:
            return []
        # A line without its end is still being written.
        whole = block[: block.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [command for line in whole.splitlines() if (command := _command(line)) is not None]


def _command(line: bytes) -> str | None:
    try:
        command = json.loads(line)["command"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return command if isinstance(command, str) and command in COMMANDS else None
