"""The child process that trains one run: `python -m mlxzo.runtime.worker RUN_DIRECTORY [--resume] [--allow-code]`.

Events go to events.jsonl in the run directory and, line by line, to stdout; the run continues if the process that reads
the pipe closes it or ends. SIGINT and SIGTERM end the run after the current step; `control` has further commands.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.config import RunConfig
from ..core.errors import EXIT_DOES_NOT_FIT, EXIT_DONE, RewardError
from ..core.failures import as_error
from ..core.formatting import format_bytes
from ..core.mlx_startup import prepare_mlx
from ..core.run_directory import RESULT, RunDirectory
from ..engine.distributed.communicator import Communicator, rank_of_environment
from ..engine.reward import Judge, open_judge
from ..memory import plan
from ..memory.sizes import Data
from ..memory.watch import Watch
from ..models.architecture import of_folder
from .control import RunControl
from .event_writer import EventWriter
from .handshake import begin, broadcast_config, join

if TYPE_CHECKING:
    from ..engine.session import Inputs

# This environment variable skips the prediction of a run's memory, so that a test can watch the cap being held.
SKIP_PLAN = "MLXZO_SKIP_PLAN"

_LAST_WORD_SECONDS = 0.5


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
        # A run can be stopped wherever progress is reported: downloads, loading, frozen layers.
        if isinstance(event, events.Progress):
            control.listen()

    started = time.perf_counter()
    try:
        run.check_in_place()
        prepare_mlx()
        # MLX must find its variables set and a fast BLAS loaded.
        import mlx.core  # noqa: F401

        with watch:
            team = join(run, control, resume, emit)
            with open_judge(run.config, allow_code, emit) as judge:
                result = train(run, emit, control, watch, resume, judge, team)
                if judge is not None:
                    result["judge"] = {"answers": judge.judged, "failed": judge.failed}
        result["memory"] = watch.summary()
        # With loading, frozen layers and evaluations, without pauses.
        result["total_seconds"] = time.perf_counter() - started - control.paused_seconds
        result["paused_seconds"] = control.paused_seconds
        run.check_in_place()
        run.write_json(RESULT, result)
        write(events.Finished(result))
        return EXIT_DONE
    except Exception as error:
        explained = as_error(error, "the run")
        if explained is None:
            raise
        if isinstance(explained, RewardError):
            explained.fix += f"; then {resume_command(run, allow_code)} continues the run"
        # On a full disk the pipe may still take the event.
        with contextlib.suppress(OSError):
            write(events.Failed(**explained.to_dict()))
        return explained.exit_code


def resume_command(run: RunDirectory, allow_code: bool) -> str:
    """The command by which the run goes on once its judge is mended. The folder of a rank other than 0 is temporary."""
    path = shlex.quote(str(run.path)) if not rank_of_environment() else "RUN"
    return f"`mlxzo train --resume {path}{' --allow-code' * (allow_code and run.config.names_judge)}`"


def end_at_once(run: RunDirectory, write: EventWriter, watch: Watch) -> None:
    """Ends this process, which is over its memory cap, from another thread while the main thread is busy.

    Nothing is lost: states are written whole or not at all.
    """
    # The process that reads the pipe may hang as well.
    threading.Timer(_LAST_WORD_SECONDS, os._exit, (EXIT_DOES_NOT_FIT,)).start()
    with contextlib.suppress(OSError):
        write(events.Failed(**watch.exceeded(run.kept()).to_dict()))
    os._exit(EXIT_DOES_NOT_FIT)


def train(
    run: RunDirectory,
    emit: events.Emit,
    control: RunControl,
    watch: Watch,
    resume: bool,
    judge: Judge | None,
    team: Communicator,
) -> dict[str, Any]:
    """Opens the run's configuration and trains it, from the start or from where it was interrupted."""
    # These import MLX.
    from ..engine.activation_cache import open_activation_cache
    from ..engine.checkpoints import Checkpoints, check_same
    from ..engine.evaluation import Evaluator
    from ..engine.methods import make_method
    from ..engine.session import fetch, load_base, load_data, make_session
    from ..engine.trainer import Trainer
    from ..memory.metal_runtime import record_runtime
    from ..models.trainable import prepare
    from ..tasks.registry import check_answers
    from .environment import environment

    config = run.config
    data = load_data(config, emit)
    check_answers(config, data.task)
    inputs = fetch(config, data, emit)
    inputs = replace(inputs, config=fit_to_cap(run, inputs, emit, watch, team))
    base = load_base(inputs)
    trainable = prepare(base.loaded.model, inputs.config)
    session = make_session(inputs, base, trainable, emit, judge=judge, team=team, interrupt=control.check_memory)
    here = environment(session)
    begin(team, here)
    if resume:
        check_same(run, here)
    run.write_json("environment.json", here)
    open_activation_cache(session, run.path, emit)
    answers, find_eps = Evaluator(session).of_answers(), session.asked.eps is None
    method = make_method(session.scorer, trainable, session.config, answers, team, find_eps=find_eps)
    checkpoints = Checkpoints(run, session, method, emit)
    result = Trainer(session, method, checkpoints, emit, control).fit(resume=resume)
    record_runtime(session.causal.vocabulary)
    return result


def fit_to_cap(run: RunDirectory, inputs: Inputs, emit: events.Emit, watch: Watch, team: Communicator) -> RunConfig:
    """The run's configuration with every `auto` resolved so that the run fits its memory cap; saved with the run.

    Raises:
        DoesNotFit: no way of running it fits.
    """
    config, splits = inputs.config, inputs.splits
    if config.memory_cap_bytes is None or os.environ.get(SKIP_PLAN):
        hold_to_cap(config, watch)
        return broadcast_config(run, team, config)
    sizes = Data(tuple(splits["train"]), (*splits["validation"], *splits["test"]))
    found = plan.fit(config, of_folder(inputs.model.path), sizes, config.memory_cap_bytes)
    hold_to_cap(config, watch, found.cache_limit_bytes)
    run.update_config(found.config)
    predicted, cap = format_bytes(found.estimate.footprint_bytes), format_bytes(config.memory_cap_bytes)
    emit(events.Note(f"predicted to take {predicted} of the memory cap of {cap}: {', '.join(found.notes)}"))
    return broadcast_config(run, team, found.config)


def hold_to_cap(config: RunConfig, watch: Watch, cache_limit_bytes: int | None = None) -> None:
    """Holds the run to its memory cap, if it has one, from here on, and sets MLX's own limits."""
    from ..memory.mlx_limits import set_limits

    set_limits(config.memory_cap_bytes, cache_limit_bytes)
    if config.memory_cap_bytes is not None:
        watch.hold(config.memory_cap_bytes)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    if threading.active_count() > 1:
        # A thread that waits for a lost rank would keep the process alive.
        os._exit(code)
    sys.exit(code)
