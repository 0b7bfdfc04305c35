"""The child process that trains one run: `python -m mlxzo.worker RUN_DIRECTORY`.

Events go to events.jsonl in the run directory and, line by line, to stdout; whoever started the worker may close the
pipe or die without ending the run. SIGINT and SIGTERM end it after the step in hand.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

from . import __version__, events
from .blas import load_fast_blas
from .config import RunConfig
from .errors import EXIT_DONE, DoesNotFit, Interrupted, MlxzoError
from .files import disk_full, is_disk_full
from .runs import BEST_STATE, RunDirectory


class EventWriter:
    """Appends events to a file and repeats them on stdout for as long as somebody reads there."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)
        self._pipe = True

    def __call__(self, event: events.Event) -> None:
        line = events.to_json(event, time.time()).encode() + b"\n"
        # Progress is for those who watch now; kept, it would make most of the file.
        if not isinstance(event, events.Progress):
            self._file.write(line)
        if self._pipe:
            try:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            except OSError:
                self._pipe = False
                # Python would try once more to flush at exit, and complain.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StopRequest:
    """A signal to end, remembered until the run comes to a point where it can end cleanly."""

    def __init__(self, run: RunDirectory):
        self._run = run
        self._requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self._requested = True

    def check(self) -> None:
        if not self._requested:
            return
        if not (self._run.path / BEST_STATE).exists():
            raise Interrupted("the run was stopped before it began to train", "start it again")
        raise Interrupted(
            "the run was stopped; its best state so far is saved",
            f"`mlxzo generate --run {self._run.path} PROMPT` tries it. It cannot be continued yet: `mlxzo train "
            f"--config {self._run.path}/config.yaml` starts it anew",
        )


def main(arguments: list[str]) -> int:
    """Trains the run in the directory named; returns its exit code."""
    run = RunDirectory(Path(arguments[0]))
    write = EventWriter(run.events_path)
    stop = StopRequest(run)

    def emit(event: events.Event) -> None:
        write(event)
        # Whoever reports progress can be stopped there: downloads, loading, the frozen layers.
        if isinstance(event, events.Progress):
            stop.check()

    started = time.perf_counter()
    try:
        result = train(run, emit, stop)
        # Loading, the frozen layers and the evaluations included.
        result["total_seconds"] = time.perf_counter() - started
        run.write_json("result.json", result)
        write(events.Finished(result))
        return EXIT_DONE
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        # On a full disk the last word may still go through the pipe.
        with contextlib.suppress(OSError):
            write(events.Failed(**told.to_dict()))
        return told.exit_code


def train(run: RunDirectory, emit: events.Emit, stop: StopRequest) -> dict[str, Any]:
    """Loads what the run's configuration names and trains it."""
    load_fast_blas()
    # These import MLX, which must find a fast BLAS already loaded.
    from .methods import make_method
    from .probing import choose_rate, choose_scope
    from .session import open_prefix_cache, open_session
    from .trainer import Trainer

    if run.config.awaits_probe and run.config.probe == "scope":
        settle(run, *choose_scope(run.config, emit))
    session = open_session(run.config, emit)
    run.write_json("environment.json", environment(session))
    open_prefix_cache(session, run.path, emit)
    if run.config.awaits_probe:
        settle(run, *choose_rate(session, emit))
        session.config = run.config
    method = make_method(session.scorer, session.trainable, session.config)
    return Trainer(session, method, run.path, emit, stop).fit()


def settle(run: RunDirectory, config: RunConfig, found: dict[str, Any]) -> None:
    """Keeps what a probe chose as the run's configuration, and what it found beside it."""
    run.write_json("probe.json", found)
    run.settle(config)


def environment(session: Any) -> dict[str, Any]:
    """What, beside the configuration, decides the bits of a run, and what a reader of its figures should know."""
    import mlx.core as mx

    from .doctor import package_versions
    from .zo.noise import NOISE_VERSION

    return {
        "mlxzo": __version__,
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "device_info": {key: value for key, value in mx.device_info().items() if isinstance(value, str | int)},
        "cpu_count": os.cpu_count(),
        "blas": load_fast_blas(),
        "noise_version": NOISE_VERSION,
        "seed": session.config.seed,
        "model_source": session.resolved.source,
        "base_weights_sha256": session.weights_sha256,
        "data_source": session.data.source,
        "data_sha256": session.data.sha256,
    }


def explain(error: Exception) -> MlxzoError | None:
    """The error in words for users; None for a mistake of ours, which should leave a traceback in worker.log."""
    if isinstance(error, MlxzoError):
        return error
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full("the run")
    text = str(error)
    # MLX says either of these where an allocation fails without ending the process.
    if isinstance(error, MemoryError) or "[malloc" in text or "Unable to allocate" in text:
        return DoesNotFit(
            f"there is not enough memory: {text}",
            "use a smaller --batch-size or --max-tokens, a smaller --model, or close other programs",
        )
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
