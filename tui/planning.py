"""The predicted memory and time of a run. Only this module of the app calls the planner."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlxzo.core.config import RunConfig
from mlxzo.core.defaults import step_limit
from mlxzo.core.device import computes_as_cpu
from mlxzo.core.errors import DoesNotFit, ModelError
from mlxzo.core.formatting import format_bytes, format_count, format_seconds
from mlxzo.core.meter import system_memory
from mlxzo.core.run_directory import RunDirectory
from mlxzo.memory.components import Component
from mlxzo.memory.estimate import Predictor, estimate
from mlxzo.memory.forecast import sizes_of
from mlxzo.memory.plan import fit_own_cap, try_fit
from mlxzo.memory.sizes import Data
from mlxzo.models.resolve import shape_of
from mlxzo.tasks.base import TaskData

# Assumed length of examples that are not on this machine.
_UNSEEN_TOKENS = 128


@dataclass(frozen=True)
class Prediction:
    """The predicted memory of a run.

    Attributes:
        parts: the components; their sum is the footprint.
        at_rest: the dtype of the stored weights, or their bits.
        numbers: the model's parameters and their dtypes, in words.
        notes: changes that fit the run to its cap, and assumptions of the prediction.
        problem: the reason why it does not fit, with a fix; None if it fits.
    """

    parts: tuple[Component, ...]
    at_rest: str = ""
    numbers: str = ""
    notes: tuple[str, ...] = ()
    problem: DoesNotFit | None = None

    @property
    def footprint_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def predict(config: RunConfig, model: str, data: Data, *, advise: bool = True) -> Prediction | None:
    """Predicts the memory of the run with `model` in place of its own, fitted to its cap.

    Without a cap the run fits if that much memory is free. Returns None if the model's configuration is not on this
    machine.

    Args:
        advise: search for a fix if it does not fit, which takes longer than all the rest.
    """
    config = dataclasses.replace(config, model=model)
    try:
        shape = shape_of(model)
    except ModelError:
        return None
    at_rest, computed = shape.number_format(config.dtype), shape.dtype_at_rest(config.dtype)
    numbers = (
        f"{format_count(shape.parameters)} parameters, {at_rest} at rest, computed in "
        f"{'float32' if computes_as_cpu() else computed}"
    )
    try:
        cap = config.memory_cap_bytes
        if advise or cap is None:
            fit = fit_own_cap(config, shape, data)
        else:
            fit = try_fit(Predictor(shape, config, data), cap)
            if fit is None:
                raise DoesNotFit(f"{model} does not fit")
    except DoesNotFit as problem:
        return Prediction(estimate(shape, config, data).components, at_rest, numbers, shape.assumed, problem)
    parts = fit.estimate.components
    found = Prediction(parts, at_rest, numbers, (*fit.notes, *shape.assumed))
    _, available = system_memory()
    if fit.cap_bytes is None and found.footprint_bytes > available:
        short = DoesNotFit(
            f"it takes about {format_bytes(found.footprint_bytes)}, and {format_bytes(available)} are free",
            "set a memory cap, so that the run is fitted to it, or close other programs",
        )
        return dataclasses.replace(found, problem=short)
    return found


def sizes(data: TaskData | None, config: RunConfig) -> Data:
    """The sizes of a task's examples, estimated from their characters; assumed if `data` is None."""
    if data is None:
        return Data.uniform(min(_UNSEEN_TOKENS, config.max_tokens))
    return _sizes(data, config.max_tokens, config.objective)


# Moving the cap predicts again and again, while the sizes depend on the examples alone.
_sizes = functools.lru_cache(maxsize=4)(sizes_of)


def training_time(config: RunConfig, runs: Iterable[RunDirectory]) -> str:
    """The expected time of the training steps, in words: the limit of the run, or its steps at the speed of the first
    finished one of `runs` with the same model, method and scope."""
    limit, seconds = step_limit(config), config.resolved().max_seconds
    if limit is None:
        return "trains until you stop it" if seconds is None else f"at most {format_seconds(seconds)} of training"
    for run in runs:
        result = run.result() or {}
        same = all(result.get(name) == getattr(config, name) for name in ("method", "scope"))
        speed = result.get("steps_per_second")
        if same and result.get("model") == Path(config.model).name and isinstance(speed, float) and speed > 0.0:
            return f"about {format_seconds(limit / speed)} of training at the speed of {run.id}"
    return "time: unknown until a run with this model, method and scope has finished here"
