"""Commands of mlxzo in child processes: what needs MLX is done there, and told in lines of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlxzo.core.child_process import worker_environment
from mlxzo.core.errors import MlxzoError

# Of a line of an answer; far more than any has.
_LONGEST_LINE = 1 << 24


class Child:
    """One command in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process
        self._dismissed = False
        self._rest = b""
        """What was printed and is no object of one line, such as an error."""
        # What is said on the side must not fill its pipe.
        self._errors = asyncio.create_task(process.stderr.read())

    @staticmethod
    async def start(*words: str, _command: Sequence[str] = (sys.executable, "-P", "-m", "mlxzo")) -> Child:
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
        """Sends a line to the command; one that has ended says why when its answers are read."""
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()

    async def answer(self) -> dict[str, Any] | None:
        """The next object that the command prints; None once it has ended.

        Raises:
            MlxzoError: it ended with an error, which is what it told; not where `end` was called.
        """
        while line := await self._process.stdout.readline():
            try:
                said = json.loads(line)
            except ValueError:
                said = None
            if isinstance(said, dict):
                return said
            self._rest += line
        code = await self._process.wait()
        if code and not self._dismissed:
            raise _failure(self._rest, await self._errors, code)
        return None

    def end(self) -> None:
        """Ends it at once, if it goes on."""
        self._dismissed = True
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _failure(output: bytes, errors: bytes, code: int) -> MlxzoError:
    """The error that a command reported, or what can be said of one that could not."""
    try:
        told = json.loads(output)["error"]
        error = MlxzoError(told["message"], told["fix"], told["details"])
        error.title = told["title"]
    except (ValueError, KeyError, TypeError):
        lines = errors.decode("utf-8", errors="replace").strip().splitlines()
        if code < 0:
            return MlxzoError(
                f"the process was ended from outside (signal {-code}), most often because memory ran out",
                "close other programs, or choose a smaller model",
                lines[-5:],
            )
        return MlxzoError("the command failed without a word", "try it in a shell", lines[-5:])
    return error
