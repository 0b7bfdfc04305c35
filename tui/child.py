"""mlxzo commands in child processes: whatever needs MLX runs there and answers in lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlxzo.core.child_process import module_command, worker_environment
from mlxzo.core.errors import MlxzoError
from mlxzo.core.events import Failed

# Bytes; far more than any answer has.
_LONGEST_LINE = 1 << 24


class Child:
    """One command in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process):
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the process needs three pipes")
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._ended = False
        self._rest = b""
        """Output other than one-line objects, such as an error."""
        # Read at once: a full pipe would block the process.
        self._errors = asyncio.create_task(process.stderr.read())

    @staticmethod
    async def start(*words: str, _command: Sequence[str] = tuple(module_command("mlxzo"))) -> Child:
        """Starts `mlxzo WORDS --json`."""
        process = await asyncio.create_subprocess_exec(
            *_command,
            *words,
            "--json",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=worker_environment(),
            limit=_LONGEST_LINE,
        )
        return Child(process)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, request: Mapping[str, Any]) -> None:
        """Sends a request as one line; if the command has ended, `answer` raises its error."""
        with contextlib.suppress(ConnectionError):
            self._stdin.write(json.dumps(request).encode() + b"\n")
            await self._stdin.drain()

    async def answer(self) -> dict[str, Any] | None:
        """Returns the next object that the command prints; None once it has ended.

        Raises:
            MlxzoError: the command's own error, unless `end` was called.
        """
        # While lines wait, readline returns without a turn for any other task: no key would be heard, nothing painted.
        await asyncio.sleep(0)
        while line := await self._stdout.readline():
            with contextlib.suppress(ValueError):
                if isinstance(found := json.loads(line), dict):
                    return found
            self._rest += line
        code = await self._process.wait()
        if code and not self._ended:
            raise _failure(self._rest, await self._errors, code)
        return None

    def end(self) -> None:
        """Kills the process if it is still running."""
        self._ended = True
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _failure(output: bytes, errors: bytes, code: int) -> MlxzoError:
    """The error that a command printed, or one made from its exit code and its last lines on stderr."""
    try:
        return Failed(**json.loads(output)["error"]).error()
    except (ValueError, KeyError, TypeError):
        message, fix = "the command failed without a message", "try it in a shell"
    if code < 0:
        message = f"the process was killed by signal {-code}, most often because memory ran out"
        fix = "close other programs, or choose a smaller model"
    return MlxzoError(message, fix, errors.decode("utf-8", errors="replace").strip().splitlines()[-5:])
