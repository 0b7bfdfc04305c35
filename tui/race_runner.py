"""A race: the run that Setup shows by MeZO and by backpropagation, one after the other, as a comparison of its own."""

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
# Either method has a default of its own for these, so that a value suits only the method that it was given for.
_OF_ONE_METHOD = ("lr", "weight_decay", "probe")
# Options that a comparison has words of its own for.
_WORDS = ("method", "max_seconds", "seed", "name")
# Options of MeZO's group that backpropagation takes as well.
_OF_BOTH = ("activation_cache",)


def race(values: Mapping[str, Any]) -> Comparison:
    """The comparison of both methods on what else a run's options say.

    Everything that does not belong to one method is the same for both; what does goes to that one, and the other takes
    its defaults. Its name follows from the options: the same race asked for again goes on where it stopped.

    Args:
        values: options of a run that are not left to their defaults.

    Raises:
        ConfigError: every problem at once.
    """
    config = RunConfig.from_mapping(values)
    words = {key: value for key, value in values.items() if key not in _WORDS}
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
    """Those of the options `own` that are for a method; `chosen` is the one that they were given for."""
    groups = {field.name: field.metadata["option"].group for field in options()}
    return {
        name: value
        for name, value in own.items()
        if (name in _OF_BOTH or groups[name] == method or groups[name] not in METHODS)
        and (name not in _OF_ONE_METHOD or method == chosen)
    }


class RaceRunner:
    """A comparison under way, in a thread of its own.

    Attributes:
        planned: its runs, in their order.
        problem: what ended it before its runs were done, such as a full disk; None where nothing did.
    """

    def __init__(self, comparison: Comparison):
        self.planned: list[PlannedRun] = comparison.runs()
        self.problem: MlxzoError | None = None
        # What the runs tell is read from their directories, as of all runs.
        self._series = RunQueue([each.config for each in self.planned], lambda *told: None)
        self._thread = threading.Thread(target=self._run, name=comparison.name, daemon=True)

    def start(self) -> None:
        """Starts with the first run that is not done yet.

        Raises:
            ConfigError: there are runs of these names with other options.
        """
        self._series.check()
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._series.stopping

    def stop(self) -> None:
        """Ends the run in hand, again more firmly (see `Supervisor.stop`), and starts no other."""
        self._series.stop()

    def position(self) -> str:
        """How far it is, in words."""
        return self._series.position()

    def _run(self) -> None:
        try:
            for _ in self._series.run():
                pass
        except MlxzoError as problem:
            self.problem = problem
        except Exception as error:
            self.problem = InternalError(f"{type(error).__name__}: {error}", "please report it")
