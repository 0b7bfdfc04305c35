"""A run fitted to a memory cap before it starts, or the plain word that it does not fit and what would.

Imports no MLX and loads no model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.config import RunConfig
from ..core.errors import DoesNotFit
from ..core.formatting import format_bytes
from ..models.architecture import ModelShape
from ..models.registry import load_registry
from ..models.resolve import shape_of_entry
from .coefficients import coefficient
from .components import MemoryEstimate, component_lines
from .estimate import Predictor
from .sizes import Data, Settings

# With fewer sequences than this share of what suits the device, a micro-batch wastes its matrix products: gradient
# checkpointing, which costs a third more computation, is then the better way to save memory.
_SMALL_MICRO_BATCH = 0.25


@dataclass(frozen=True)
class Fit:
    """A run settled to a cap.

    Attributes:
        config: the run's, with `micro_batch`, `checkpointing` and `activation_cache` settled.
        estimate: what it is predicted to take.
        cap_bytes: the cap; None: there is none, and nothing was settled but `checkpointing`.
        cache_limit_bytes: what to limit MLX's cache of freed buffers to; None leaves MLX's own.
        notes: what was settled, in words.
    """

    config: RunConfig
    estimate: MemoryEstimate
    cap_bytes: int | None
    cache_limit_bytes: int | None
    notes: tuple[str, ...] = ()


def settle(config: RunConfig, shape: ModelShape, data: Data, *, on_cpu: bool | None = None) -> Fit:
    """The run fitted to its own `memory_cap`, where it has one: what a worker calls before it loads the model.

    Args:
        config: resolved.
        data: its encoded examples, which say their sizes: `Data(tuple(train), (*validation, *test))`.

    Raises:
        DoesNotFit: see `fit`.
    """
    cap = config.memory_cap_bytes
    if cap is not None:
        return fit(config, shape, data, cap, on_cpu=on_cpu)
    if config.checkpointing == "auto":
        config = dataclasses.replace(config, checkpointing="off")
    return Fit(config, Predictor(shape, config, data, on_cpu).estimate(Settings.of(config)), None, None)


def fit(config: RunConfig, shape: ModelShape, data: Data, cap_bytes: int, *, on_cpu: bool | None = None) -> Fit:
    """The run with the largest micro-batch whose predicted footprint, and a margin, stay under the cap.

    What is `auto` gives way in this order: MLX's cache of freed buffers, the size of a micro-batch down to a quarter
    of what suits the device, the activation cache in memory, activations (gradient checkpointing), and then the
    micro-batch down to one sequence. Only the cut into micro-batches can change a MeZO loss, and that by the rounding
    of float32.

    Raises:
        DoesNotFit: no way of running it fits. The details are the components of the smallest, and what would fit.
    """
    predictor = Predictor(shape, config, data, on_cpu)
    found = try_fit(predictor, cap_bytes)
    if found is not None:
        return found
    least = smallest(predictor)
    runtime = least.bytes_of("runtime", "tokenizer")
    if cap_bytes < runtime:
        message = (
            f"the cap of {format_bytes(cap_bytes)} is below what Python, MLX and the tokenizer alone take, "
            f"{format_bytes(runtime)}"
        )
    else:
        message = (
            f"{shape.name} with {describe_method(config)} needs a cap of {format_bytes(needed_bytes(least))} or more, "
            f"and it is {format_bytes(cap_bytes)}"
        )
    margin = f"{coefficient('margin'):.0%}"
    ways = alternatives(predictor, cap_bytes)
    raise DoesNotFit(
        message,
        ("any of these would fit: " if len(ways) > 1 else "this would fit: ") + ", ".join(ways),
        [*component_lines(least.components), f"with a margin of {margin} {format_bytes(needed_bytes(least))}"],
        needed_bytes=needed_bytes(least),
    )


def try_fit(predictor: Predictor, cap_bytes: int) -> Fit | None:
    """As `fit`, or None where the run does not fit."""
    enough = max(1, int(_SMALL_MICRO_BATCH * predictor.most_rows))
    best: Fit | None = None
    for settings in _ways(predictor):
        found = _largest_micro_batch(predictor, settings, cap_bytes)
        if found is not None and (best is None or found.estimate.micro_batch_rows > best.estimate.micro_batch_rows):
            best = found
        if best is not None and best.estimate.micro_batch_rows >= enough:
            break
    return best


def smallest(predictor: Predictor) -> MemoryEstimate:
    """The least that the run can be made to take."""
    ways = (
        predictor.estimate(dataclasses.replace(settings, micro_batch=micro_batch, cache_limit_bytes=0))
        for settings in _ways(predictor)
        for micro_batch in (1, settings.micro_batch)
    )
    return min(ways, key=lambda predicted: predicted.footprint_bytes)


def needed_bytes(predicted: MemoryEstimate) -> int:
    """What a cap must be for a run predicted to take this much: the footprint and a margin for what is not foreseen."""
    # One byte more than the rounding may take away.
    return math.ceil(predicted.footprint_bytes * (1.0 + coefficient("margin"))) + 1


def cache_limit(predicted: MemoryEstimate, on_cpu: bool) -> int:
    """A limit for MLX's cache of freed buffers that costs little time, in bytes: on the CPU MLX's own, on a GPU what a
    step frees again, but at most a tenth of the footprint."""
    default = int(coefficient("default_cache_bytes"))
    if on_cpu:
        return default
    freed = predicted.peak_bytes - predicted.bytes_of("weights", "adapters", "optimiser state", "activation cache")
    return max(default, min(freed, predicted.footprint_bytes // 10))


def alternatives(predictor: Predictor, cap_bytes: int) -> list[str]:
    """What would fit under the cap instead of a run that does not, as options, and the cap it would fit under."""
    config, shape, data, on_cpu = predictor.config, predictor.shape, predictor.data, predictor.on_cpu

    def fits(model: ModelShape, **changes: str) -> bool:
        tried = dataclasses.replace(config, **changes)
        return try_fit(Predictor(model, tried, data, on_cpu), cap_bytes) is not None

    ways = []
    if config.checkpointing == "off" and config.method == "bp" and fits(shape, checkpointing="on"):
        ways.append("--checkpointing on")
    if "lora" not in config.scope and fits(shape, scope="lora"):
        ways.append("--scope lora")
    if config.method == "bp" and fits(shape, method="mezo"):
        ways.append("--method mezo")
    smaller = (
        entry
        for entry in sorted(load_registry().values(), key=lambda entry: -entry.parameters)
        if entry.parameters <= shape.parameters
        and entry.name != shape.name
        # Quantised weights cannot train, and scales are theirs alone.
        and not (entry.shape.quantised and "full" in config.parsed_scope.kinds)
        and not (not entry.shape.quantised and "scales" in config.parsed_scope.kinds)
    )
    ways += [f"--model {entry.name}" for entry in smaller if fits(shape_of_entry(entry))][:1]
    # Rounded up to 10 MB, so that what is typed fits.
    need = -(-needed_bytes(smallest(predictor)) // 10**7)
    return [*ways, f"--memory-cap {need / 100:.2f}GB"]


def describe_method(config: RunConfig) -> str:
    """`MeZO on full`, `backpropagation on lora with checkpointing`."""
    name = "MeZO" if config.method == "mezo" else "backpropagation"
    return f"{name} on {config.scope}" + (" with checkpointing" if config.checkpointing == "on" else "")


def _ways(predictor: Predictor) -> Iterator[Settings]:
    """What `auto` leaves open, the fastest first."""
    config = predictor.config
    settings = Settings.of(config)
    backward = config.method == "bp"
    for checkpointing in (False, True) if backward and config.checkpointing == "auto" else (settings.checkpointing,):
        for keeps in _prefix_choices(predictor):
            yield dataclasses.replace(settings, checkpointing=checkpointing, keeps_prefix=keeps)


def _prefix_choices(predictor: Predictor) -> Sequence[bool]:
    config = predictor.config
    if not predictor.prefix_bytes:
        return (False,)
    if config.activation_cache != "auto":
        return (config.activation_cache == "ram",)
    # A run that does not come back to its examples would not get back what the cache costs.
    pays = config.steps * config.batch_size > len(predictor.data.train)
    return (True, False) if pays else (False,)


def _largest_micro_batch(predictor: Predictor, settings: Settings, cap_bytes: int) -> Fit | None:
    """The run with the most sequences a micro-batch that fit, or None."""

    def attempt(rows: int | None) -> Fit | None:
        tried = dataclasses.replace(settings, micro_batch=rows, cache_limit_bytes=0)
        bare = predictor.estimate(tried)
        room = int(cap_bytes / (1.0 + coefficient("margin"))) - bare.footprint_bytes
        if room < 0:
            return None
        limit = min(room, cache_limit(bare, predictor.on_cpu))
        return _fit(predictor, dataclasses.replace(tried, cache_limit_bytes=limit), cap_bytes)

    found = attempt(settings.micro_batch)
    if found is not None:
        return found
    low, high = 0, predictor.most_rows
    while high - low > 1:
        middle = (low + high) // 2
        tried = attempt(middle)
        if tried is None:
            high = middle
        else:
            low, found = middle, tried
    return found


def _fit(predictor: Predictor, settings: Settings, cap_bytes: int) -> Fit:
    config, limit, notes = predictor.config, settings.cache_limit_bytes, []
    if settings.micro_batch != config.micro_batch:
        notes.append(f"micro-batches of at most {settings.micro_batch} sequences")
    if settings.checkpointing and config.checkpointing == "auto":
        notes.append("gradient checkpointing")
    if settings.keeps_prefix and config.activation_cache == "auto":
        notes.append("the output of frozen layers kept in memory")
    notes.append(f"MLX's cache of freed buffers limited to {format_bytes(limit)}")
    settled = dataclasses.replace(
        config,
        micro_batch=settings.micro_batch,
        checkpointing="on" if settings.checkpointing else "off",
        activation_cache=_activation_cache(predictor, settings),
    )
    return Fit(settled, predictor.estimate(settings), cap_bytes, limit, tuple(notes))


def _activation_cache(predictor: Predictor, settings: Settings) -> str:
    asked = predictor.config.activation_cache
    if asked != "auto" or not predictor.prefix_bytes:
        return asked
    # Not on disk: it is read through a map of the file, which the system may count as the process's memory.
    return "ram" if settings.keeps_prefix else "off"
