"""A race: the run of the setup screen by MeZO and by backpropagation, one after the other, as a comparison."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxzo.core.config import RunConfig, options
from mlxzo.core.errors import InternalError, MlxzoError
from mlxzo.experiments.comparison import COMMON, Comparison
from mlxzo.experiments.naming import base_name, dashed, options_digest
from mlxzo.experiments.queue import RunQueue
from mlxzo.experiments.spec import PlannedRun

METHODS = ("mezo", "bp")
# Options whose defaults depend on the method, so that a value suits only the method that it was given for.
_OF_ONE_METHOD = ("lr", "weight_decay")
# Options that a comparison sets by other keys.
_REPLACED = ("method", "max_seconds", "seed", "name")
# Options of MeZO's group that apply to backpropagation too.
_OF_BOTH = ("activation_cache",)


def race(values: Mapping[str, Any]) -> Comparison:
    """The comparison of both methods with the options of one run.

    Options that belong to one method go to that one; the other takes its defaults. All else is the same for both. The
    name follows from the options, so that the same race asked for again goes on where it stopped.

    Args:
        values: options of a run that do not have their defaults.

    Raises:
        ConfigError: every problem at once.
    """
    config = RunConfig.from_mapping(values)
    words = {key: value for key, value in values.items() if key not in _REPLACED}
    shared = {key: value for key, value in words.items() if key in (*COMMON, "steps")}
    own = {"model": config.model, **{key: value for key, value in words.items() if key not in shared}}
    return Comparison.from_mapping(
        {
            "name": f"race-{dashed(Path(config.task).stem)[:20]}-{options_digest(values)}",
            "minutes": None if config.max_seconds is None else config.max_seconds / 60,
            "seeds": [config.seed],
            **shared,
            "contestants": [
                {
                    "name": f"{base_name(config.model)} {method} {values.get('scope', config.scope)}",
                    "method": method,
                    **_for_method(method, own, config.method),
                }
                for method in METHODS
            ],
        }
    )


def _for_method(method: str, own: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """The options in `own` that apply to `method`; `chosen` is the method that they were given for."""
    groups = {field.name: field.metadata["option"].group for field in options()}
    return {
        name: value
        for name, value in own.items()
        if (name in _OF_BOTH or groups[name] == method or groups[name] not in METHODS)
        and (name not in _OF_ONE_METHOD or method == chosen)
    }


class RaceRunner:
    """Executes a comparison in a thread.

    Attributes:
        planned: its runs, in order.
        problem: the error that ended it early, such as a full disk; else None.
    """

    def __init__(self, comparison: Comparison):
        self.planned: list[PlannedRun] = comparison.runs()
        self.problem: MlxzoError | None = None
        # The screens read the events from the run directories, as of all runs.
        self._queue = RunQueue([each.config for each in self.planned], lambda run, event: None)
        self._thread = threading.Thread(target=self._run, name=comparison.name, daemon=True)

    def start(self) -> None:
        """Starts with the first run that is not done.

        Raises:
            ConfigError: existing runs of these names have other options.
        """
        self._queue.check()
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._queue.stopping

    def stop(self) -> None:
        """Stops the run in progress and starts no other; a second call stops it by force (see `Supervisor.stop`)."""
        self._queue.stop()

    def position(self) -> str:
        """The progress in words: `run 1 of 2, all done in about 5 min`."""
        return self._queue.position()

    def _run(self) -> None:
        try:
            for _ in self._queue.run():
                pass
        except MlxzoError as problem:
            self.problem = problem
        except Exception as error:
            self.problem = InternalError(f"{type(error).__name__}: {error}", "please report it")
