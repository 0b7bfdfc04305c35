"""Rewards: a user's program or Python function scores the answers that the model writes. Imports no MLX.

The program is started once per run, in the folder the run was started from. For every answer it reads a line with one
JSON object from its standard input, and writes one to its standard output, in the same order:

    {"prompt": "...", "answer": "...", "gold": ["..."]}     ->     {"score": 0.75}

It must flush its output, and write nothing else; its standard error is shown if it fails. A function is called by
`reward_host`, which speaks the same protocol, so it runs in a process of its own as well.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO

from ..core.child_process import pipe
from ..core.config import RunConfig
from ..core.errors import ConfigError, RewardError
from ..core.formatting import shown
from ..core.parsing import CONTENT_ERRORS

# Time to end by itself after the end of its input.
_CLOSE_SECONDS = 2.0
_SHOWN_LINES, _LONGEST_LINE = 5, 1000
# A reply holds one number; a longer one is invalid.
_LONGEST_REPLY = 1 << 16
# Replies that wait to be taken; a program that writes without being asked must not fill the memory.
_MOST_WAITING = 1 << 10
_POLL_SECONDS = 0.1
# After the last reply to some answers: a further one may be on its way.
_MORE_SECONDS = 0.02
_ONE_EACH = "have it write one line for each line that it reads"


@dataclass(frozen=True)
class Answer:
    """A prompt, the model's answer to it, and the correct answers by the data."""

    prompt: str
    answer: str
    gold: tuple[str, ...]


def check_consent(config: RunConfig, allow_code: bool) -> None:
    """Raises ConfigError if a configuration names code to run that the command line does not allow."""
    if config.objective == "reward" and not allow_code:
        named = config.reward_command or config.reward_function
        raise ConfigError(
            f"the configuration wants to run {shown(named)} to judge answers",
            "check it, and give --allow-code to the command if you trust it",
        )


class Judge:
    """The user's program, as a context manager that ends it. Not thread-safe.

    Args:
        command: program and arguments; started at the first call of `scores`.
        seconds: most time for one answer.
    """

    def __init__(self, command: Sequence[str], seconds: float):
        self._command, self._seconds = list(command), seconds
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._errors: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._listener: threading.Thread | None = None

    @staticmethod
    def of(command: str | None, function: str | None, seconds: float) -> Judge:
        """The judge of the option `reward_command` or `reward_function`.

        Raises:
            ConfigError: the command is empty or has an unclosed quote.
        """
        if function is not None:
            # Like any program run with -m, it finds modules in the current folder.
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
            RewardError: the program cannot be started, ends, takes too long, or writes something else than scores.
        """
        process = self._process or self._start()
        self._expect_no_more()
        # In a thread of its own: a program that replies as it reads may fill its pipe before all answers are written.
        writer = threading.Thread(target=_write, args=(pipe(process.stdin), answers), daemon=True)
        writer.start()
        found = [self._score(process, answer, number, len(answers)) for number, answer in enumerate(answers, 1)]
        writer.join(self._seconds)
        if writer.is_alive():
            raise self._failed("replies to answers that it has not read", _ONE_EACH)
        self._expect_no_more(_MORE_SECONDS)
        return found

    def close(self) -> None:
        """Closes the program's input, and kills the program if that does not end it."""
        process, self._process = self._process, None
        if process is None:
            return
        # A pipe that is full would block the end of the buffer.
        closing = threading.Thread(target=_close, args=(pipe(process.stdin),), daemon=True)
        closing.start()
        try:
            process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[str]:
        try:
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise RewardError(
                f"the reward command {shown(self._command[0])} cannot be started: {error.strerror}",
                "correct the command",
            ) from None
        self._replies, self._errors = queue.Queue(_MOST_WAITING), deque(maxlen=_SHOWN_LINES)
        threading.Thread(target=self._read, args=(process, self._replies), daemon=True).start()
        self._listener = threading.Thread(target=_listen, args=(pipe(process.stderr), self._errors), daemon=True)
        self._listener.start()
        return process

    def _read(self, process: subprocess.Popen[str], replies: queue.Queue[str | None]) -> None:
        """Queues the replies, and None at their end. A program that writes more than is asked for has to wait."""
        stream = pipe(process.stdout)
        with contextlib.suppress(OSError, ValueError):
            while line := stream.readline(_LONGEST_REPLY):
                while True:
                    with contextlib.suppress(queue.Full):
                        replies.put(line, timeout=_POLL_SECONDS)
                        break
                    if self._process is not process:
                        return
        with contextlib.suppress(queue.Full):
            replies.put(None, timeout=_POLL_SECONDS)

    def _expect_no_more(self, seconds: float = 0.0) -> None:
        """Checks that no reply is left: it would be taken for that to the next answer.

        Args:
            seconds: time in which one may come.
        """
        try:
            line = self._replies.get(timeout=seconds) if seconds else self._replies.get_nowait()
        except queue.Empty:
            return
        if line is not None:
            raise self._failed(f"wrote {line.strip()[:80]!r} without being asked", _ONE_EACH)
        # The program has ended, which is told once another score is needed.
        self._replies.put(None)

    def _score(self, process: subprocess.Popen[str], answer: Answer, number: int, count: int) -> float:
        try:
            line = self._replies.get(timeout=self._seconds)
        except queue.Empty:
            raise self._failed(
                f"gave no score within {self._seconds:g} s (answer {number} of {count})",
                "make it faster, raise --reward-seconds, or have it flush what it writes",
            ) from None
        if line is None:
            try:
                code = process.wait(self._seconds)
            except subprocess.TimeoutExpired:
                raise self._failed("closed its output and does not end", _ONE_EACH) from None
            raise self._failed(f"ended with exit code {code} (before answer {number} of {count})", "correct it")
        try:
            reply = json.loads(line)
            score = reply["score"]
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise ValueError
        except CONTENT_ERRORS:
            raise self._failed(
                f'answered {line.strip()[:80]!r} where a line such as {{"score": 0.75}} was expected '
                f"(answer {number} of {count}, {answer.answer[:40]!r})",
                "have it write one JSON object a line, with a finite number as its score, and nothing else",
            ) from None
        return float(score)

    def _failed(self, what: str, fix: str) -> RewardError:
        """Ends the program; returns the error, with the last lines of its standard error."""
        if self._process is not None:
            self._process.kill()
        if self._listener is not None:
            self._listener.join(_CLOSE_SECONDS)
        self.close()
        return RewardError(f"the reward command {what}", fix, list(self._errors))


def _write(stream: IO[str], answers: Sequence[Answer]) -> None:
    # If the program has ended, reading its replies reports that.
    with contextlib.suppress(OSError, ValueError):
        for answer in answers:
            stream.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
        stream.flush()


def _listen(stream: IO[str], kept: deque[str]) -> None:
    """Keeps the last lines of standard error."""
    with contextlib.suppress(OSError, ValueError):
        while line := stream.readline(_LONGEST_LINE):
            if line.strip():
                kept.append(line.rstrip())


def _close(stream: IO[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        stream.close()
