"""`mlxzo train` over several processes: starting the ranks, and training as one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

from ..core import events
from ..core.child_process import module_command
from ..core.config import RunConfig
from ..core.errors import EXIT_DONE, EXIT_INTERRUPTED, MlxzoError, WorkerDied
from ..core.files import user_path
from ..core.options import flag
from ..core.run_directory import RunDirectory
from ..runtime.hosts import Hosts
from ..runtime.launcher import RELAY, STOP, Launcher
from ..runtime.supervisor import Supervisor
from .foreground import show_result, watch

_POLL_SECONDS = 0.25
# A launcher sends SIGTERM because another rank has failed; a worker that waits for that rank has to be killed.
_GRACE_SECONDS = 4.0


def train_on(hosts: Hosts, arguments: Sequence[str], port: int | None, *, as_json: bool) -> None:
    """Starts `mlxzo train` with these arguments as the ranks of a run, shows rank 0's events and prints its result.

    Raises:
        MlxzoError: the run did not finish; title, fix and exit code are those of the rank that failed first.
    """
    launcher = Launcher(hosts, rank_command(arguments), port)
    table = watch(launcher)
    error, run = launcher.error(), launcher.run
    if error is not None:
        if run is not None:
            _record(error, run)
            error.details = [*error.details, *([run.kept()] if run.path.is_dir() else []), f"run directory: {run.path}"]
        raise error
    assert run is not None and launcher.result is not None
    show_result(launcher.result, run, table, as_json=as_json)


def rank_command(arguments: Sequence[str]) -> list[str]:
    """The command that trains as a rank, once its environment makes it one."""
    return module_command("mlxzo", "train", *arguments)


def _record(error: MlxzoError, run: RunDirectory) -> None:
    """Appends `error` to the run's events if it says more than rank 0 could, which saw another rank lost.

    Does nothing where the run directory is on another machine.
    """
    last = run.outcome[0] if run.path.is_dir() and run.outcome else None
    if isinstance(last, events.Failed) and last.message != error.message:
        run.add_event(events.Failed(**error.to_dict()))


def follow(config: RunConfig, rank: int, *, resume: bool, allow_code: bool) -> int:
    """Trains as a rank other than 0, which leaves no files; returns its exit code.

    Args:
        config: the options given on this machine; rank 0 sends the others of a resumed run.

    Raises:
        MlxzoError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix=f"mlxzo-rank{rank}-") as folder:
        run = RunDirectory.create(dataclasses.replace(config, out=folder, name=f"rank{rank}"))
        supervisor = Supervisor(run, resume=resume, allow_code=allow_code)
        outcome = _attend(supervisor)
    if isinstance(outcome, events.Finished):
        return EXIT_DONE
    if outcome.exit_code == EXIT_INTERRUPTED:
        # A requested stop is no failure, for which the launcher would end the other ranks.
        return EXIT_DONE
    if outcome.kind == WorkerDied.kind:
        # The step it had reached is of no use: the run resumes from rank 0's.
        outcome = dataclasses.replace(outcome, fix="`mlxzo train --resume` continues, with or without it", details=[])
    if RELAY in os.environ:
        _print(outcome)
        return outcome.exit_code
    raise dataclasses.replace(outcome, message=f"rank {rank}: {outcome.message}").error()


def lead(supervisor: Supervisor) -> int:
    """Trains as rank 0 under `train_on`, to which it prints every event; returns the exit code."""
    print(json.dumps({"run": str(supervisor.run.path)}), flush=True)
    outcome = _attend(supervisor, _print)
    return outcome.exit_code if isinstance(outcome, events.Failed) else EXIT_DONE


def _attend(supervisor: Supervisor, emit: events.Emit = lambda event: None) -> events.Finished | events.Failed:
    """Starts a worker, passes its events to `emit` until it has ended, and returns the last one."""
    relays = RELAY in os.environ
    force_at: float | None = None

    def handle(number: int, frame: object) -> None:
        nonlocal force_at
        supervisor.stop()
        if number == signal.SIGTERM:
            force_at = time.monotonic() + _GRACE_SECONDS

    for number in (signal.SIGTERM,) if relays else (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    if relays:
        os.set_blocking(sys.stdin.fileno(), False)
    supervisor.start()
    while supervisor.running:
        for event in supervisor.poll(_POLL_SECONDS):
            emit(event)
        said = _from_launcher() if relays else b""
        if said is None:
            # Without its launcher nobody could end the run: it stops, and can be resumed.
            relays = False
            supervisor.stop()
        else:
            for _ in range(said.count(STOP.strip())):
                supervisor.stop()
        if force_at is not None and time.monotonic() > force_at:
            force_at = None
            supervisor.stop()
    assert supervisor.outcome is not None
    return supervisor.outcome


def _from_launcher() -> bytes | None:
    """What the launcher has written since the last call; None once it is gone."""
    try:
        return os.read(sys.stdin.fileno(), 4096) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


def _print(event: events.Event) -> None:
    # The launcher may be gone, which the end of stdin tells.
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), events.to_json(event, time.time()).encode() + b"\n")


def arguments_of(flags: dict[str, str], config: str | None, resume: str | None, allow_code: bool) -> list[str]:
    """The same arguments for another rank, with absolute paths."""
    given = [word for name, value in flags.items() for word in (flag(name), value)]
    if config is not None:
        given += ["--config", str(user_path(config).absolute())]
    if resume is not None:
        given += ["--resume", resume]
    return [*given, *(["--allow-code"] if allow_code else [])]
