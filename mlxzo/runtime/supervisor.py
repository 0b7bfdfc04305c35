"""Runs a worker as a child process: starts it, relays its events, stops it, enforces its memory cap, and explains its
end. Imports no MLX.

Training is always in a child, since the system may end a process that takes too much memory. The worker appends its
events to events.jsonl by itself and prints the same lines to a pipe, which the supervisor only relays: a worker
survives its supervisor.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from ..core import events
from ..core.child_process import keep_awake, module_command, signal_name, worker_environment
from ..core.config import RunConfig
from ..core.errors import EXIT_DONE, ConfigError, InternalError, Interrupted, MlxzoError, WorkerDied
from ..core.failures import as_error
from ..core.files import explained
from ..core.formatting import format_bytes, step_text
from ..core.run_directory import RunDirectory
from ..engine.distributed.communicator import not_joined, rank_of_environment
from ..memory.guard import Guard
from .control import forget

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 5.0
_LOG_TAIL_BYTES = 8192

# The most frequent cause of each signal that mlxzo did not send.
_CAUSES: dict[int, str] = {
    signal.SIGKILL: "it was ended from outside, most often because the system ran out of memory",
    signal.SIGSEGV: "it accessed invalid memory, most often because an allocation failed",
    signal.SIGABRT: "it aborted, most often because an allocation failed",
    signal.SIGBUS: "it accessed invalid memory, most often because an allocation failed or the disk is full",
    signal.SIGILL: "it used an instruction that this processor lacks, most often from the BLAS library",
    signal.SIGTERM: "another process asked it to end",
}


class Supervisor:
    """One worker of one run. Not thread-safe, except `stop`.

    Args:
        resume: continue an interrupted run.
        config: the configuration to go on with (see `resume_config`); None for that of the run. The run keeps its own
            if it does not go on after all.
        allow_code: the user allows the configuration's reward code to run (see `engine.reward`).
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        resume: bool = False,
        config: RunConfig | None = None,
        allow_code: bool = False,
        _command: Sequence[str] | None = None,
    ):
        self.run = run
        flags = [flag for flag, given in (("--resume", resume), ("--allow-code", allow_code)) if given]
        self._command = list(_command or module_command("mlxzo.runtime.worker", str(run.path), *flags))
        self._config = config
        self._kept_config: RunConfig | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._partial = b""
        self._ended = False
        self._began = 0.0
        self._stops = 0
        self._kill_at: float | None = None
        self._last_step: events.Step | None = None
        self._guard: Guard | None = None
        self._awake: subprocess.Popen[bytes] | None = None
        self._outcome: events.Finished | events.Failed | None = None

    def start(self, lock: int | None = None) -> None:
        """Starts the worker in a session of its own, so that a Ctrl-C in the terminal does not reach it.

        Args:
            lock: a descriptor that holds the run's lock (see `RunDirectory.claim`), which the caller closes; None:
                the lock is taken here.

        Raises:
            ConfigError: the run has a worker already, or its configuration cannot be read.
        """
        # Through another RunDirectory: `run.config` is read once, and the worker still resolves open options.
        config = RunDirectory(self.run.path).config
        cap_bytes = (self._config or config).memory_cap_bytes
        held = self.run.claim() if lock is None else lock
        if held is None:
            raise ConfigError(
                f"the run {self.run.id} is running already", f"watch it with `mlxzo runs show {self.run.id}`"
            )
        try:
            if self._config is not None:
                self._kept_config = config
                self.run.update_config(self._config)
            process = self._launch(held)
        except BaseException:
            self._restore_config()
            raise
        finally:
            if lock is None:
                os.close(held)
        if cap_bytes is not None:
            # Until it is waited for, the worker has an entry in the process table, even if it ended at once.
            self._guard = Guard(process.pid, cap_bytes, self._holds_cap, lambda: self._signal(signal.SIGKILL))

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        """Starts the process, whose copy of the lock's descriptor holds the lock until it ends."""
        read, write = os.pipe()
        self._began = time.time()
        try:
            with explained(self.run.path, "the run"):
                forget(self.run)
            with explained(self.run.path, "the run"), self.run.log_path.open("ab") as log:
                process = self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=write,
                    stderr=log,
                    start_new_session=True,
                    env=worker_environment(),
                    pass_fds=(lock,),
                )
            # For information alone: a full disk must not leave a worker without its supervisor.
            with contextlib.suppress(OSError):
                os.pwrite(lock, f"{process.pid}\n".encode(), 0)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        os.set_blocking(read, False)
        self._pipe = read
        self._awake = keep_awake(process.pid)
        return process

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and not self._ended

    @property
    def exit_code(self) -> int | None:
        """The exit code of the run, as the command line returns it; None while it runs."""
        if not self._ended:
            return None
        return self._outcome.exit_code if isinstance(self._outcome, events.Failed) else EXIT_DONE

    @property
    def outcome(self) -> events.Finished | events.Failed | None:
        """The event the run ended with; None while it runs."""
        return self._outcome if self._ended else None

    def events(self) -> Iterator[events.Event]:
        """Yields the worker's events until it has ended; the last is a Finished or a Failed."""
        while self.running:
            yield from self.poll(_POLL_SECONDS)

    def poll(self, timeout: float = 0.0) -> list[events.Event]:
        """Waits up to `timeout` seconds for events and returns them; the last ones when the worker has ended."""
        process = self._process
        if process is None or self._ended:
            return []
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)
        # The process is polled before the pipe is read, so that its last events are not missed. The end of the pipe
        # alone means nothing: a child of the worker may hold it open, or the worker may close it.
        ended = process.poll() is not None
        if not ended and self._pipe < 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(timeout, _POLL_SECONDS))
            # Nothing is left in the pipe.
            ended = process.poll() is not None
        elif not ended:
            select.select([self._pipe], [], [], timeout)
        found = self._read()
        if ended:
            found += self._finish(process.returncode)
        return found

    def stop(self) -> None:
        """Asks the worker to finish its step, save, report and end; ends it by force when called again.

        The second call sends SIGTERM, and after 5 s SIGKILL (from `poll` or `events`); the third sends SIGKILL. Safe
        in a signal handler and from any thread: it takes no lock and does not wait.
        """
        if not self.running:
            return
        self._stops += 1
        self._signal({1: signal.SIGINT, 2: signal.SIGTERM}.get(self._stops, signal.SIGKILL))
        if self._stops == 2:
            self._kill_at = time.monotonic() + _GRACE_SECONDS

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        # Popen.send_signal skips a process that has been waited for, whose id may be reused by now. macOS answers EPERM
        # for a group of processes that have all ended and were not waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGKILL and process.poll() is None:
                # The worker leads its session, so its children end with it.
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    def _holds_cap(self) -> bool:
        """True if the worker reports that it enforces the cap; from the event file, since `poll` may not be called."""
        memory = self.run.last_event(events.Memory)
        return isinstance(memory, events.Memory) and memory.cap_bytes is not None

    def _read(self) -> list[events.Event]:
        """The events of the complete lines in the pipe."""
        while self._pipe >= 0:
            try:
                block = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                break
            if not block:
                self._close_pipe()
            self._partial += block
        *lines, self._partial = self._partial.split(b"\n")
        found = [event for event, _ in events.read(line.decode("utf-8", errors="replace") for line in lines)]
        for event in found:
            if isinstance(event, events.Step):
                self._last_step = event
            elif isinstance(event, events.Finished | events.Failed):
                self._outcome = event
            if isinstance(event, events.Resumed | events.Finished):
                self._kept_config = None
        return found

    def _restore_config(self) -> None:
        """Gives a run that did not go on its configuration back."""
        if self._kept_config is not None:
            # A full disk must not hide the reason.
            with contextlib.suppress(MlxzoError):
                self.run.update_config(self._kept_config)
            self._kept_config = None

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
        self._pipe = -1

    def _finish(self, returncode: int) -> list[events.Event]:
        """Closes the run; returns a Failed event if the worker ended without a Finished or Failed."""
        self._close_pipe()
        if self._guard is not None:
            self._guard.stop()
        self._ended = True
        if self._awake is not None:
            self._awake.terminate()
            self._awake.wait()
        self._end_children()
        with self.run.held() if self._kept_config is not None else contextlib.nullcontext() as lock:
            # Unless another process has taken the run over.
            if lock is not None:
                self._restore_config()
        if self._outcome is not None:
            return []
        told, when = self.run.outcome or (None, 0.0)
        if told is not None and when >= self._began:
            # By the process that ended the worker (see `control.kill`).
            self._outcome = told
            return [told]
        self._outcome = events.Failed(**self._explain(returncode).to_dict())
        self.run.add_event(self._outcome)
        return [self._outcome]

    def _end_children(self) -> None:
        """Ends what a killed worker has left of its process group: a judge of rewards, a download."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _explain(self, returncode: int) -> MlxzoError:
        """The reason for the end of a worker without a Finished or Failed."""
        if self._guard is not None and self._guard.killed:
            return self._guard.exceeded(self.run.kept())
        details = self._reached()
        show = f"`mlxzo runs show {shlex.quote(str(self.run.path))}` shows what it reached"
        if self._stops:
            how = "by force, before it could save its last steps" if self._stops > 1 else "before it could report"
            return Interrupted(f"the run was stopped {how}", show, details)
        if returncode == -signal.SIGALRM and (rank := rank_of_environment()) is not None:
            return not_joined(rank)
        if returncode < 0:
            cause = _CAUSES.get(-returncode, "it was ended by a signal that mlxzo did not send")
            return WorkerDied(
                f"the training process was ended by {signal_name(-returncode)}: {cause}",
                "use a smaller --batch-size or --max-tokens, a smaller --scope or a smaller --model, or close other "
                f"programs; {show}",
                details,
            )
        last = self._last_log_line()
        if (failure := as_error(RuntimeError(last))) is not None:
            # Of what ended the process before it could report, such as a library that found no memory.
            failure.details = details
            return failure
        return InternalError(
            last or f"the worker ended with code {returncode} and without a result",
            f"please report it with {self.run.log_path}",
            details,
        )

    def _reached(self) -> list[str]:
        step = self._last_step
        if step is None:
            return ["it had not finished its first step"]
        memory = f"{format_bytes(step.active_bytes)} in use by MLX, {format_bytes(step.peak_bytes)} at the peak"
        return [f"last {step_text(step)}, {memory}", self.run.kept()]

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError), self.run.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines()]
            return next((line for line in reversed(lines) if line), "")
        return ""
