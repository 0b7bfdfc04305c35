"""Rewards: a user's program or Python function, or the judges that a task names, score the answers that the model
writes. Imports no MLX.

The program is started once per run, in the folder the run was started from. For every answer it reads a line with one
JSON object from its standard input, and writes one to its standard output, in the same order:

    {"prompt": "...", "answer": "...", "gold": ["..."], "fields": {...}}     ->     {"score": 0.75}

It must flush its output, and write nothing else; its standard error is shown if it fails. Functions, and the judges of
a task, are called by `reward_host`, which speaks the same protocol: they run in a process of its own as well, which can
be ended where a regular expression takes for ever.

A judge that fails on an answer costs that answer its score, and is started anew where it has to be. The run ends once
more than half of the last answers have failed.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from ..core import events
from ..core.child_process import module_command, pipe, worker_environment
from ..core.config import RunConfig
from ..core.errors import RewardError
from ..core.files import user_path
from ..core.formatting import shown
from ..core.parsing import CONTENT_ERRORS
from ..tasks.registry import check_judge, get_task
from .reward_command import check_code, command_words

# Time to end by itself after the end of its input.
_CLOSE_SECONDS = 2.0
_SHOWN_LINES, _LONGEST_LINE = 5, 1000
# A reply holds one number; a longer one is invalid.
_LONGEST_REPLY = 1 << 16
# Replies that wait to be taken; a program that writes without being asked must not fill the memory.
_MOST_WAITING = 1 << 10
_POLL_SECONDS = 0.1
_MORE_SECONDS = 0.02
_ONE_EACH = "have it write one line for each line that it reads"
_CORRECT = "correct the judge, and try it on a line of your own (docs/rewards.md)"
RECENT_ANSWERS = 50
"""The run ends once more than half of this many last answers have failed; at its beginning, of the first
`FIRST_ANSWERS`."""
FIRST_ANSWERS = 10


@dataclass(frozen=True)
class Answer:
    """A prompt, the model's answer to it, and the correct answers and further fields by the data."""

    prompt: str
    answer: str
    gold: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def open_judge(config: RunConfig, allow_code: bool, emit: events.Emit) -> Iterator[Judge | None]:
    """The judge that a configuration or its task names; None without one. `emit` takes notes on its failures.

    Raises:
        ConfigError: the command line does not allow the configuration to run code; there is no such task, or it does
            not go with the objective.
    """
    check_code(config, allow_code)
    command, function = config.reward_command, config.reward_function
    task = get_task(config.task)
    check_judge(config, task)
    if command is None and function is None and task.reward is None:
        yield None
        return
    path = None if task.reward is None else str(user_path(config.task))
    with Judge.of(command, function, path, config.reward_seconds, lambda text: emit(events.Note(text))) as judge:
        yield judge


class _Failure(Exception):
    """The program has to be started anew.

    Attributes:
        what, fix: the problem and its remedy, for a message.
        misaligned: no reply since the answers were written can be assigned to its answer.
    """

    def __init__(self, what: str, fix: str, misaligned: bool = False):
        self.what, self.fix, self.misaligned = what, fix, misaligned


class Judge:
    """The program that scores answers, as a context manager that ends it. Not thread-safe.

    Args:
        command: program and arguments; started at the first call of `scores`.
        seconds: most time for one answer.
        tell: takes a sentence on the failures so far, at the first, tenth, hundredth, ... of them.
        more_seconds: time for a reply that no answer has asked for to arrive, after each call of `scores`; more after
            the first, by the time that replies take. 0: no such reply can come.

    Attributes:
        judged, failed: numbers of answers so far, and of those that could not be scored.
    """

    def __init__(
        self,
        command: Sequence[str],
        seconds: float,
        tell: Callable[[str], None] = lambda text: None,
        more_seconds: float = _MORE_SECONDS,
    ):
        self._command, self._seconds, self._tell, self._more_seconds = list(command), seconds, tell, more_seconds
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._errors: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._listener: threading.Thread | None = None
        self._recent: deque[bool] = deque(maxlen=RECENT_ANSWERS)
        self._last_failure = ("", "")
        self.judged = self.failed = 0

    @staticmethod
    def of(
        command: str | None,
        function: str | None,
        task: str | None,
        seconds: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Judge:
        """The judge of the option `reward_command` or `reward_function`, or of the task YAML `task`.

        Raises:
            ConfigError: the command is empty, has an unclosed quote, or names no program that can be run.
        """
        # No code of the user's writes to the pipe of `reward_host`.
        if task is not None:
            return Judge(module_command("mlxzo.engine.reward_host", task), seconds, tell, more_seconds=0.0)
        if function is not None:
            # Like any program run with -m, it finds modules in the current folder.
            host = (sys.executable, "-m", "mlxzo.engine.reward_host", function)
            return Judge(host, seconds, tell, more_seconds=0.0)
        return Judge(command_words(command or ""), seconds, tell)

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """The score of each answer, higher is better; nan where the judge failed on it (see `with_failures_lowest`).

        Raises:
            RewardError: the program cannot be started, or more than half of the last `RECENT_ANSWERS` have failed.
        """
        found: list[float] = []
        while len(found) < len(answers):
            scores = self._judge(answers[len(found) :])
            self._count(scores)
            found += scores
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

    def _judge(self, answers: Sequence[Answer]) -> list[float]:
        """The scores of the first answers, at least one: up to the first failure after which the program has ended."""
        found: list[float] = []
        before, more_seconds = self._process, self._more_seconds
        try:
            process = self._running()
            # In a thread of its own: a program that replies as it reads may fill its pipe before all answers are
            # written.
            writer = threading.Thread(target=_write, args=(pipe(process.stdin), answers), daemon=True)
            writer.start()
            # Between replies: the first one waits for the program's start as well.
            slowest, received = 0.0, math.inf
            for answer in answers:
                found.append(self._score(process, answer))
                last, received = received, time.monotonic()
                slowest = max(slowest, received - last)
            writer.join(self._seconds)
            if writer.is_alive():
                raise _Failure("replies to answers that it has not read", _ONE_EACH, misaligned=True)
            if process is not before and more_seconds:
                # One that wrote a line of its own as it started has a reply left, which takes as long as others.
                more_seconds += min(2 * slowest, self._seconds)
            self._expect_no_more(more_seconds)
        except _Failure as failure:
            self._last_failure = (failure.what, failure.fix)
            self._kill()
            return [math.nan] * len(answers) if failure.misaligned else [*found, math.nan]
        return found

    def _count(self, scores: Sequence[float]) -> None:
        """Counts answers and failures, and tells of them.

        Raises:
            RewardError: too many of the last answers have failed.
        """
        before, failures = self.failed, [math.isnan(score) for score in scores]
        self.judged += len(failures)
        self.failed += sum(failures)
        self._recent.extend(failures)
        if self.failed == before:
            return
        what, fix = self._last_failure
        recent = len(self._recent)
        if 2 * sum(self._recent) > max(recent, FIRST_ANSWERS):
            self._kill()
            raise RewardError(
                f"the judge failed on {sum(self._recent)} of the last {recent} answers; the last time it {what}",
                fix,
                list(self._errors),
            )
        if len(str(self.failed)) > len(str(before)) or not before:
            said = f"; its last words: {shown(self._errors[-1])}" if self._errors else ""
            self._tell(
                f"the judge has failed on {self.failed} of {self.judged} answers, which count as the lowest score; the "
                f"last time it {what}{said}"
            )

    def _running(self) -> subprocess.Popen[str]:
        """The program, started where it does not run, with no reply left from before: it would be taken for that to the
        next answer."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            return self._start()
        self._expect_no_more()
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        try:
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=worker_environment(),
            )
        except OSError as error:
            raise RewardError(
                f"the reward command {shown(self._command[0])} cannot be started: {error.strerror}",
                "correct the program, of which a script needs a first line that names its interpreter",
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
        """Raises _Failure if a reply is left that no answer has asked for.

        Args:
            seconds: time in which one may come.
        """
        try:
            line = self._replies.get(timeout=seconds) if seconds else self._replies.get_nowait()
        except queue.Empty:
            return
        if line is not None:
            raise _Failure(f"wrote {line.strip()[:80]!r} without being asked", _ONE_EACH, misaligned=True)
        # The program has ended, which matters once another score is needed.
        self._replies.put(None)

    def _score(self, process: subprocess.Popen[str], answer: Answer) -> float:
        """The score of the next reply; nan where it is an object without one.

        Raises:
            _Failure: there is no such reply.
        """
        try:
            line = self._replies.get(timeout=self._seconds)
        except queue.Empty:
            raise _Failure(
                f"gave no score within {self._seconds:g} s",
                "make it faster, raise --reward-seconds, or have it flush what it writes",
            ) from None
        if line is None:
            try:
                code = process.wait(self._seconds)
            except subprocess.TimeoutExpired:
                raise _Failure("closed its output and did not end", _ONE_EACH) from None
            raise _Failure(f"ended with exit code {code} before it had replied", _CORRECT)
        what = f'answered {line.strip()[:80]!r} where a line such as {{"score": 0.75}} was expected'
        fix = "have it write one JSON object a line, with a finite number as its score, and nothing else"
        try:
            reply = json.loads(line)
            if not isinstance(reply, dict):
                raise ValueError
            # An object of another kind, such as a line of a log: the reply may still come.
            if not {"score", "error"} & reply.keys():
                raise ValueError
            score = reply.get("score")
            if not isinstance(score, bool) and isinstance(score, int | float) and math.isfinite(score):
                return float(score)
        except CONTENT_ERRORS:
            raise _Failure(f"{what} (for the answer {answer.answer[:40]!r})", fix) from None
        # One reply to one answer: the next one is that to the next answer.
        error = reply.get("error")
        if isinstance(error, str):
            what, fix = f"said {shown(error)}", _CORRECT
        self._last_failure = (f"{what} (for the answer {answer.answer[:40]!r})", fix)
        return math.nan

    def _kill(self) -> None:
        """Ends the program, after which the last lines of its standard error are known."""
        if self._process is not None:
            self._process.kill()
        if self._listener is not None:
            self._listener.join(_CLOSE_SECONDS)
        self.close()


def with_failures_lowest(scores: Sequence[float]) -> list[float]:
    """Scores with nan, of answers that the judge failed on, as the lowest of the others, and at most 0."""
    lowest = min((score for score in scores if not math.isnan(score)), default=0.0)
    return [min(0.0, lowest) if math.isnan(score) else score for score in scores]


def _write(stream: IO[str], answers: Sequence[Answer]) -> None:
    # If the program has ended, reading its replies reports that.
    with contextlib.suppress(OSError, ValueError):
        for answer in answers:
            # Tables and parquet files have values that JSON has not, such as dates.
            stream.write(json.dumps(asdict(answer), ensure_ascii=False, default=str) + "\n")
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
