"""What one run is going to take, memory and time, told before anything is loaded; and what runs fit side by side.

Imports no MLX and loads no model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.config import DATA_OPTIONS, RunConfig
from ..core.errors import MlxzoError
from ..models.architecture import shape_of
from ..tasks.base import Example, TaskData
from ..tasks.registry import load_task
from .estimate import Predictor
from .plan import needed_bytes, settle, smallest, try_fit
from .sizes import Data, ExampleSize
from .step_time import Calibration, seconds_per_step

# English text has about four characters a token; a plan had better be made for somewhat more tokens.
CHARACTERS_A_TOKEN = 3.5
# The options that a run's rows and their sizes follow from.
_DATA = (*DATA_OPTIONS, "prompt_style", "max_tokens", "objective", "seed")


@dataclass(frozen=True)
class Forecast:
    """What a run is going to take, as far as it can be told.

    Attributes:
        footprint_bytes: predicted peak of what the system charges the run for, fitted to its cap; of a run that does
            not fit its cap, the least. None: not known.
        claim_bytes: what has to be set aside for it: its cap, or else the prediction and a margin. None: not known.
        fits_cap: it has no cap, or is predicted to fit it; None: not known.
        seconds_per_step: a guess; None without a calibration.
        unknown: why the prediction is not known, in words; else empty.
    """

    footprint_bytes: int | None
    claim_bytes: int | None
    fits_cap: bool | None
    seconds_per_step: float | None
    unknown: str = ""

    def fits(self, machine_bytes: int) -> bool | None:
        """Whether the run fits its cap and a machine of so much memory; None: not known."""
        if self.footprint_bytes is not None and self.footprint_bytes > machine_bytes:
            return False
        return self.fits_cap

    def seconds(self, config: RunConfig, done: int = 0) -> float | None:
        """A guess of the seconds of its steps beyond the first `done`, evaluations left out: no more than its time
        limit, which is all that is known without a calibration; None: not even that."""
        limit = config.max_seconds
        if self.seconds_per_step is None:
            return limit
        left = (config.steps - done) * self.seconds_per_step
        # Of the limit, what the steps that are done have taken is gone.
        return left if limit is None else min(left, max(0.0, limit - done * self.seconds_per_step))


def forecast(config: RunConfig, calibration: Calibration | None) -> Forecast:
    """What the run of a resolved configuration is going to take. Reads its task's rows, once for all runs that share
    them."""
    cap = config.memory_cap_bytes
    if config.probe == "scope":
        return Forecast(None, cap, None, None, "its scope is chosen when it starts")
    try:
        shape = shape_of(config.model)
    except MlxzoError as error:
        return Forecast(None, cap, None, None, error.message)
    data = _sizes(*(getattr(config, name) for name in _DATA))
    if isinstance(data, MlxzoError):
        return Forecast(None, cap, None, None, data.message)
    predictor = Predictor(shape, config, data)
    found = settle(config, shape, data) if cap is None else try_fit(predictor, cap)
    predicted = smallest(predictor) if found is None else found.estimate
    step = seconds_per_step(shape, found.config if found else config, data, calibration) if calibration else None
    claim = needed_bytes(predicted) if cap is None else cap
    return Forecast(predicted.footprint_bytes, claim, found is not None, step)


@dataclass(frozen=True)
class Room:
    """Memory that runs share.

    Attributes:
        limit_bytes: of all together.
        claims: what each run needs set aside, in bytes, by the run's name; None: not known.
    """

    limit_bytes: int
    claims: Mapping[str | None, int | None]

    def admits(self, config: RunConfig, running: Sequence[RunConfig]) -> bool:
        """Whether a run has room beside those that are running; one of unknown needs has none."""
        together = [self.claims[each.name] for each in (config, *running)]
        return None not in together and sum(together) <= self.limit_bytes


def sizes_of(loaded: TaskData, max_tokens: int, objective: str) -> Data:
    """The sizes of a task's examples, guessed by their characters.

    Args:
        max_tokens, objective: of the run.
    """

    def size(example: Example) -> ExampleSize:
        answers = [_tokens(candidate) for candidate in example.candidates]
        # Label words are most often one token each, which is read off the prompt of any other.
        longer = [len(candidate) > 2 * CHARACTERS_A_TOKEN + 1 for candidate in example.candidates]
        shared = len(answers) > 1 and not any(longer)
        length = min(max_tokens, _tokens(example.prompt) + (0 if shared else max(answers)))
        scored = 1 if shared else sum(answers)
        return ExampleSize(length, max(1, sum(longer)), len(answers), scored, shared, example.written)

    train, validation, test = (
        tuple(size(example) for example in examples)
        for examples in (loaded.learned(objective), loaded.validation, loaded.test)
    )
    return Data(train, (*validation, *test))


def _tokens(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_A_TOKEN))


@functools.lru_cache(maxsize=16)
def _sizes(*values: Any) -> Data | MlxzoError:
    """Sizes of a run's rows by the values of the options in `_DATA`, or why they cannot be had.

    They are kept, since many runs have the same rows, and their predictions go by the largest of them.
    """
    config = RunConfig(**dict(zip(_DATA, values, strict=True)))
    try:
        return sizes_of(load_task(config), config.max_tokens, config.objective)
    except MlxzoError as error:
        return error
