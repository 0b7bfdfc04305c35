"""Training in this process, so that a test can end it at a step and see to its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlxzo.core import events
from mlxzo.core.run_directory import RunDirectory
from mlxzo.engine.checkpoints import Checkpoints
from mlxzo.engine.distributed.communicator import Request
from mlxzo.engine.evaluation import Evaluator
from mlxzo.engine.methods import make_method
from mlxzo.engine.session import open_session
from mlxzo.engine.trainer import Trainer
from mlxzo.runtime.event_writer import EventWriter


class StoppedError(Exception):
    """The end of a run that leaves no trace."""


class Untouched:
    """The control of a run that nobody controls."""

    def wait_while_paused(self, step: int, serve: Callable[[], bool]) -> None:
        pass

    def consume(self, request: Request) -> bool:
        return False

    def is_over(self, late: bool) -> bool:
        return late


def stop() -> None:
    raise StoppedError


def fit(run: RunDirectory, until: int | None = None, then: Callable[[], object] = stop, judge: Any = None) -> dict:
    """Trains a run in this process, from the start or on; once step `until` is told, it calls `then`, and by default
    ends without a trace. `judge` scores the answers of a reward."""
    resume = run.events_path.exists()
    write = EventWriter(run.events_path)

    def emit(event: events.Event) -> None:
        write(event)
        if isinstance(event, events.Step) and event.step == until:
            then()

    session = replace(open_session(run.config, emit), judge=judge)
    answers, find_eps = Evaluator(session).of_answers(), run.config.eps is None
    method = make_method(session.scorer, session.trainable, session.config, answers, find_eps=find_eps)
    return Trainer(session, method, Checkpoints(run, session, method, emit), emit, Untouched()).fit(resume=resume)
