"""The child process that trains one run: `python -m mlxzo.runtime.worker RUN_DIRECTORY [--resume] [--allow-code]`.

Events go to events.jsonl in the run directory and, line by line, to stdout; whoever started the worker may close the
pipe or die without ending the run. SIGINT and SIGTERM end it after the step in hand; `control` has further commands.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import events
from ..core.blas import load_fast_blas
from ..core.config import RunConfig
from ..core.errors import EXIT_DOES_NOT_FIT, EXIT_DONE, DoesNotFit, MlxzoError
from ..core.files import disk_full, is_disk_full
from ..core.formatting import format_bytes
from ..core.run_directory import RunDirectory
from ..engine.distributed.communicator import Communicator
from ..engine.encoding import EncodedExample
from ..engine.reward import Judge, check_consent
from ..memory import plan
from ..memory.sizes import Data
from ..memory.watch import Watch
from ..models.architecture import of_folder
from ..models.resolve import ResolvedModel
from .control import RunControl
from .handshake import begin, join, settled

# Set in the environment, it leaves out the prediction of a run's memory, so that a test can see the cap being held.
SKIP_PLAN = "MLXZO_SKIP_PLAN"

_OFFER_SECONDS = 0.01
_LAST_WORD_SECONDS = 0.5


class EventWriter:
    """Appends events to a file and repeats them on stdout for as long as somebody reads there; for several threads."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)
        self._pipe = True
        self._lock = threading.Lock()

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            # Progress is for those who watch now; kept, it would make most of the file.
            self._write(event, not isinstance(event, events.Progress), self._pipe)

    def offer(self, event: events.Event, kept: bool) -> None:
        """Writes an event if that needs no waiting to speak of, for another thread or for whoever reads the pipe.

        Args:
            kept: whether it goes to the file as well.
        """
        if self._lock.acquire(timeout=_OFFER_SECONDS):
            try:
                # A pipe that is ready takes a line of up to 4096 bytes at once.
                self._write(event, kept, self._pipe and bool(select.select([], [sys.stdout], [], 0)[1]))
            finally:
                self._lock.release()

    def _write(self, event: events.Event, kept: bool, shown: bool) -> None:
        line = events.to_json(event, time.time()).encode() + b"\n"
        if kept:
            self._file.write(line)
        if shown:
            try:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            except OSError:
                self._pipe = False
                # Python would try once more to flush at exit, and complain.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str]) -> int:
    """Trains the run in the directory named; returns its exit code."""
    run, resume = RunDirectory(Path(arguments[0])), "--resume" in arguments[1:]
    allow_code = "--allow-code" in arguments[1:]
    write = EventWriter(run.events_path)
    watch = Watch(write.offer, lambda: end_at_once(run, write, watch))
    control = RunControl(run, write, watch)

    def emit(event: events.Event) -> None:
        if isinstance(event, events.Phase):
            watch.enter(event.phase)
        write(event)
        # Whoever reports progress can be stopped there: downloads, loading, the frozen layers.
        if isinstance(event, events.Progress):
            control.listen()

    started = time.perf_counter()
    try:
        load_fast_blas()
        # MLX must find a fast BLAS already loaded.
        import mlx.core  # noqa: F401

        with watch:
            team = join(run, control, resume, emit)
            with judge_of(run.config, allow_code) as judge:
                result = train(run, emit, control, watch, resume, judge, team)
        result["memory"] = watch.summary()
        # Loading, the frozen layers and the evaluations included, pauses not.
        result["total_seconds"] = time.perf_counter() - started - control.paused_seconds
        result["paused_seconds"] = control.paused_seconds
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


def end_at_once(run: RunDirectory, write: EventWriter, watch: Watch) -> None:
    """Ends this process, from another thread, where the main one does not come to see that it is over the cap.

    Nothing is lost by it: states are written whole or not at all.
    """
    # Whoever reads the pipe may be stuck as well.
    threading.Timer(_LAST_WORD_SECONDS, os._exit, (EXIT_DOES_NOT_FIT,)).start()
    with contextlib.suppress(OSError):
        write(events.Failed(**watch.exceeded(run.kept()).to_dict()))
    os._exit(EXIT_DOES_NOT_FIT)


@contextlib.contextmanager
def judge_of(config: RunConfig, allow_code: bool) -> Iterator[Judge | None]:
    """The judge that a configuration names, which may have come from anywhere: only if the user has said so.

    Raises:
        ConfigError: the user has not.
    """
    if config.objective != "reward":
        yield None
        return
    check_consent(config, allow_code)
    with Judge.of(config.reward_command, config.reward_function, config.reward_seconds) as judge:
        yield judge


def train(
    run: RunDirectory,
    emit: events.Emit,
    control: RunControl,
    watch: Watch,
    resume: bool,
    judge: Judge | None,
    team: Communicator,
) -> dict[str, Any]:
    """Loads what the run's configuration names and trains it, from the start or from where it was interrupted."""
    # These import MLX.
    from ..engine.checkpoints import Checkpoints, check_same
    from ..engine.lr_finder import choose_rate, choose_scope
    from ..engine.methods import make_method
    from ..engine.session import open_activation_cache, open_session
    from ..engine.trainer import Trainer

    if run.config.awaits_probe and run.config.probe == "scope":
        # What scope is to be fitted to the cap is not known yet.
        hold_to_cap(run.config, watch)
        settle(run, *choose_scope(run.config, emit))
        settled(run, team, run.config)
    session = open_session(
        run.config, emit, fit=partial(fit_to_cap, run, emit, watch, team), interrupt=control.check_memory
    )
    session.judge, session.team = judge, team
    here = environment(session)
    begin(team, session.config, here)
    if resume:
        check_same(run, here)
    run.write_json("environment.json", here)
    open_activation_cache(session, run.path, emit)
    if run.config.awaits_probe:
        settle(run, *choose_rate(session, emit))
        session.config = settled(run, team, run.config)
    method = make_method(session.scorer, session.trainable, session.config, session.of_answers(), team)
    checkpoints = Checkpoints(run, session, method, emit)
    return Trainer(session, method, checkpoints, emit, control).fit(resume=resume)


def fit_to_cap(
    run: RunDirectory,
    emit: events.Emit,
    watch: Watch,
    team: Communicator,
    config: RunConfig,
    resolved: ResolvedModel,
    splits: Mapping[str, Sequence[EncodedExample]],
) -> RunConfig:
    """The run's configuration with what is `auto` settled so that it fits its memory cap; it is kept with the run.

    Raises:
        DoesNotFit: no way of running it fits.
    """
    if config.memory_cap_bytes is None or os.environ.get(SKIP_PLAN):
        hold_to_cap(config, watch)
        return settled(run, team, config)
    sizes = Data(tuple(splits["train"]), (*splits["validation"], *splits["test"]))
    found = plan.settle(config, of_folder(resolved.path), sizes)
    hold_to_cap(config, watch, found.cache_limit_bytes)
    run.settle(found.config)
    predicted, cap = (format_bytes(size) for size in (found.estimate.footprint_bytes, found.cap_bytes))
    emit(events.Note(f"predicted to take {predicted} of the memory cap of {cap}: {', '.join(found.notes)}"))
    return settled(run, team, found.config)


def hold_to_cap(config: RunConfig, watch: Watch, cache_limit_bytes: int | None = None) -> None:
    """Has the run's memory cap held from here on, if it has one; MLX's own limits are set in any case."""
    from ..memory.mlx_limits import set_limits

    set_limits(config.memory_cap_bytes, cache_limit_bytes)
    if config.memory_cap_bytes is not None:
        watch.hold(config.memory_cap_bytes)


def settle(run: RunDirectory, config: RunConfig, found: dict[str, Any]) -> None:
    """Keeps what a probe chose as the run's configuration, and what it found beside it."""
    run.write_json("probe.json", found)
    run.settle(config)


def environment(session: Any) -> dict[str, Any]:
    """What, beside the configuration, decides the bits of a run, and what a reader of its figures should know."""
    import mlx.core as mx

    from ..zo.noise import NOISE_VERSION
    from .doctor import package_versions

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
        "ranks": session.team.size,
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
    code = main(sys.argv[1:])
    sys.stdout.flush()
    if threading.active_count() > 1:
        # A thread that waits for a rank that is gone would keep the process.
        os._exit(code)
    sys.exit(code)
