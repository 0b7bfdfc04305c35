"""Scores from outside: a program or a Python function of the user's judges the answers that the model writes.

The program is started once a run, in the folder the run was started from. For every answer it reads one JSON object a
line from its standard input, and for each it writes one to its standard output, in the same order:

    {"prompt": "...", "answer": "...", "gold": ["..."]}     ->     {"score": 0.75}

It must flush what it writes; what it writes to standard error is shown where it fails. A function is called by a
program of ours that speaks the same (see `reward_host`), so it runs in a process of its own as well. Nothing here
imports MLX.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO

from ..core.config import RunConfig
from ..core.errors import ConfigError, RewardError

_FAREWELL_SECONDS = 2.0
_SHOWN_LINES = 5
# A reply holds one number; what is longer is none.
_LONGEST_REPLY = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What is judged: a prompt, what the model wrote after it, and the answers that the data calls right."""

    prompt: str
    answer: str
    gold: tuple[str, ...]


def check_consent(config: RunConfig, allow_code: bool) -> None:
    """Raises ConfigError where a configuration names code to run and the command line does not allow it."""
    if config.objective == "reward" and not allow_code:
        named = config.reward_command or config.reward_function
        raise ConfigError(
            f"the configuration wants to run {named!r} to judge answers",
            "read it, and say --allow-code on the command line of `mlxzo train` if it is yours",
        )


class Judge:
    """The user's program, for as long as it is entered (a context manager); for one thread.

    Args:
        command: as in a shell, without a shell's own features; started when first asked.
        seconds: how long it may take for one answer.
    """

    def __init__(self, command: Sequence[str], seconds: float):
        self._command, self._seconds = list(command), seconds
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._complaints: IO[str] | None = None

    @staticmethod
    def of(command: str | None, function: str | None, seconds: float) -> Judge:
        """The judge that the options `reward_command` or `reward_function` name.

        Raises:
            ConfigError: the command is no command.
        """
        if function is not None:
            # Like any Python program, it finds modules in the current folder.
            return Judge((sys.executable, "-m", "mlxzo.engine.reward_host", function), seconds)
        try:
            words = shlex.split(command or "")
        except ValueError as error:
            raise ConfigError(f"reward_command: {error}".lower(), "quote it as in a shell") from None
        if not words:
            raise ConfigError("reward_command: it is empty", "name a program, such as `python score.py`")
        return Judge(words, seconds)

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """The score of each answer; higher is better.

        Raises:
            RewardError: the program cannot be started, ends, takes too long, or says something else than scores.
        """
        if self._process is None:
            self._start()
        # From a thread of its own: a program that replies as it reads may fill its pipe before we have written all.
        writer = threading.Thread(target=self._write, args=(answers,), daemon=True)
        writer.start()
        found = [self._score(answer, number, len(answers)) for number, answer in enumerate(answers, 1)]
        writer.join()
        return found

    def close(self) -> None:
        """Ends the program: it sees the end of its input, and is killed where that does not end it."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._complaints.close()

    def _start(self) -> None:
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see close)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RewardError(
                f"the reward command {self._command[0]!r} cannot be started: {error.strerror}", "correct the command"
            ) from None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        """Passes on the replies, and None at their end."""
        with contextlib.suppress(OSError, ValueError):
            while line := stream.readline(_LONGEST_REPLY):
                self._replies.put(line)
        self._replies.put(None)

    def _write(self, answers: Sequence[Answer]) -> None:
        # A program that has gone is seen by whoever waits for its replies.
        with contextlib.suppress(OSError, ValueError):
            for answer in answers:
                self._process.stdin.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
            self._process.stdin.flush()

    def _score(self, answer: Answer, number: int, count: int) -> float:
        try:
            line = self._replies.get(timeout=self._seconds)
        except queue.Empty:
            raise self._failed(
                f"gave no score within {self._seconds:g} s (answer {number} of {count})",
                "make it quicker, raise --reward-seconds, or have it flush what it writes",
            ) from None
        if line is None:
            code = self._process.wait()
            raise self._failed(f"ended with exit code {code} (before answer {number} of {count})", "correct it")
        try:
            reply = json.loads(line)
            score = reply["score"]
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise self._failed(
                f'answered {line.strip()[:80]!r} where a line such as {{"score": 0.75}} was expected '
                f"(answer {number} of {count}, {answer.answer[:40]!r})",
                "have it write one JSON object a line, with a finite number as its score, and nothing else",
            ) from None
        return float(score)

    def _failed(self, what: str, fix: str) -> RewardError:
        self._process.kill()
        self._complaints.seek(0)
        said = [line.rstrip() for line in self._complaints.read().splitlines() if line.strip()]
        self.close()
        return RewardError(f"the reward command {what}", fix, said[-_SHOWN_LINES:])
