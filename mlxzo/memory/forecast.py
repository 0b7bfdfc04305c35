"""Prediction of a run's memory and time before anything is loaded, and the memory budget of runs side by side.

Imports no MLX and loads no model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.config import DATA_OPTIONS, RunConfig
from ..core.errors import MlxzoError
from ..core.resolved_config import ResolvedConfig
from ..models.resolve import shape_of
from ..tasks.base import Example, TaskData
from ..tasks.registry import load_task
from .estimate import Predictor
from .plan import fit_own_cap, needed_bytes, smallest, try_fit
from .sizes import Data, ExampleSize
from .step_time import Calibration, seconds_per_step

# English text has about four characters a token; a plan errs on the side of more tokens.
CHARACTERS_A_TOKEN = 3.5
# The options that determine a run's rows and their sizes.
# With the judge, without which the objective `reward` is none.
_DATA = (*DATA_OPTIONS, "prompt_style", "max_tokens", "objective", "reward_command", "reward_function", "seed")


@dataclass(frozen=True)
class Forecast:
    """Predicted memory and time of a run.

    Attributes:
        footprint_bytes: predicted peak of the footprint, fitted to the cap; of a run that does not fit its cap, the
            least. None if unknown.
        reservation_bytes: memory to reserve for the run: its cap, or else the prediction and a margin. None if unknown.
        fits_cap: the run has no cap, or is predicted to fit it; None if unknown.
        seconds_per_step: estimate; None without a calibration.
        unknown: the reason why there is no prediction, in words; else empty.
    """

    footprint_bytes: int | None
    reservation_bytes: int | None
    fits_cap: bool | None
    seconds_per_step: float | None
    unknown: str = ""

    def fits(self, machine_bytes: int) -> bool | None:
        """True if the run fits its cap and a machine with this memory; None if unknown."""
        if self.footprint_bytes is not None and self.footprint_bytes > machine_bytes:
            return False
        return self.fits_cap

    def seconds(self, config: RunConfig, done: int = 0) -> float | None:
        """Estimated seconds of the steps after the first `done`, evaluations excluded, at most the run's time limit.

        Without a calibration, the time limit; None if there is neither.
        """
        limit = config.max_seconds
        if self.seconds_per_step is None:
            return limit
        left = (ResolvedConfig.of(config).steps - done) * self.seconds_per_step
        # The steps that are done have used up part of the limit.
        return left if limit is None else min(left, max(0.0, limit - done * self.seconds_per_step))


def forecast(config: RunConfig, calibration: Calibration | None) -> Forecast:
    """The forecast of a resolved configuration. Reads its task's rows, once for all runs that share them."""
    cap = config.memory_cap_bytes
    try:
        shape = shape_of(config.model)
    except MlxzoError as error:
        return Forecast(None, cap, None, None, error.message)
    data = _sizes(*(getattr(config, name) for name in _DATA))
    if isinstance(data, MlxzoError):
        return Forecast(None, cap, None, None, data.message)
    predictor = Predictor(shape, config, data)
    found = fit_own_cap(config, shape, data) if cap is None else try_fit(predictor, cap)
    predicted = smallest(predictor) if found is None else found.estimate
    step = seconds_per_step(shape, found.config if found else config, data, calibration) if calibration else None
    reservation = needed_bytes(predicted) if cap is None else cap
    return Forecast(predicted.footprint_bytes, reservation, found is not None, step)


def evaluation_bytes(config: RunConfig) -> int | None:
    """Predicted footprint of evaluating the base model on the rows of a configuration; None if unknown."""
    data = _sizes(*(getattr(config, name) for name in _DATA))
    if isinstance(data, MlxzoError):
        return None
    try:
        return Predictor(shape_of(config.model), config, data).evaluation().footprint_bytes
    except MlxzoError:
        return None


@dataclass(frozen=True)
class MemoryBudget:
    """Memory shared by runs side by side.

    Attributes:
        limit_bytes: of all runs together.
        reservations: bytes reserved for each run, by the run's name; None if unknown.
    """

    limit_bytes: int
    reservations: Mapping[str | None, int | None]

    def admits(self, config: RunConfig, running: Sequence[RunConfig]) -> bool:
        """True if a run fits beside the running ones; False if the needs of any of them are unknown."""
        needed = [self.reservations[each.name] for each in (config, *running)]
        known = [size for size in needed if size is not None]
        return len(known) == len(needed) and sum(known) <= self.limit_bytes


def sizes_of(loaded: TaskData, max_tokens: int, objective: str) -> Data:
    """The sizes of a task's examples, estimated from their characters.

    Args:
        max_tokens, objective: options of the run.
    """

    def size(example: Example) -> ExampleSize:
        answers = [_tokens(candidate) for candidate in example.candidates]
        # Label words are mostly one token each, and are scored at the prompt's last position.
        longer = [len(candidate) > 2 * CHARACTERS_A_TOKEN + 1 for candidate in example.candidates]
        shared = len(answers) > 1 and not any(longer)
        length = min(max_tokens, _tokens(example.prompt) + (0 if shared else max(answers, default=0)))
        scored = 1 if shared or not answers else sum(answers)
        return ExampleSize(length, max(1, sum(longer)), max(1, len(answers)), scored, shared, example.written)

    train, validation, test = (
        tuple(size(example) for example in examples)
        for examples in (loaded.learned(objective), loaded.validation, loaded.test)
    )
    return Data(train, (*validation, *test))


def _tokens(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_A_TOKEN))


@functools.lru_cache(maxsize=16)
def _sizes(*values: Any) -> Data | MlxzoError:
    """Sizes of a run's rows by the values of the options in `_DATA`, or the error that prevents reading them.

    Cached, since many runs share their rows.
    """
    config = RunConfig(**dict(zip(_DATA, values, strict=True)))
    try:
        return sizes_of(load_task(config), config.max_tokens, config.objective)
    except MlxzoError as error:
        return error
