"""Fits a run to a memory cap before it starts; a run that cannot fit is refused, with alternatives that would.

Imports no MLX and loads no model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..core.config import RunConfig
from ..core.errors import DoesNotFit
from ..core.formatting import counted, format_bytes
from ..core.meter import gpu_working_set_bytes
from ..core.options import flag
from ..core.resolved_config import ResolvedConfig
from ..models.architecture import ModelShape
from ..models.registry import load_registry
from ..models.resolve import shape_of_entry
from .coefficients import coefficient
from .components import MemoryEstimate, component_lines
from .estimate import Predictor
from .sizes import Data, Settings

# Micro-batches below this share of the size that suits the device compute inefficiently: gradient checkpointing, at a
# third more computation, is then the better way to save memory.
_SMALL_MICRO_BATCH = 0.25


@dataclass(frozen=True)
class Fit:
    """A run fitted to a cap.

    Attributes:
        config: the run's, with values for `micro_batch`, `checkpointing` and `activation_cache`.
        estimate: its predicted memory.
        cap_bytes: the cap; None without one, when only `checkpointing` gets a value.
        cache_limit_bytes: limit of MLX's cache of freed buffers; None: that of a process without a cap.
        notes: the choices, in words.
    """

    config: RunConfig
    estimate: MemoryEstimate
    cap_bytes: int | None
    cache_limit_bytes: int | None
    notes: tuple[str, ...] = ()


def fit_own_cap(config: RunConfig, shape: ModelShape, data: Data, *, on_cpu: bool | None = None) -> Fit:
    """Fits a run to its own `memory_cap`, if it has one.

    Args:
        config: resolved.
        data: its encoded examples, which have the fields of a size: `Data(tuple(train), (*validation, *test))`.

    Raises:
        DoesNotFit: see `fit`.
    """
    cap = config.memory_cap_bytes
    if cap is not None:
        return fit(config, shape, data, cap, on_cpu=on_cpu)
    if config.checkpointing == "auto":
        config = dataclasses.replace(config, checkpointing="off")
    predictor = Predictor(shape, config, data, on_cpu)
    return Fit(config, predictor.estimate(Settings.of(config, predictor.on_cpu)), None, None)


def fit(config: RunConfig, shape: ModelShape, data: Data, cap_bytes: int, *, on_cpu: bool | None = None) -> Fit:
    """Fits a run to a cap, with the largest micro-batch whose predicted footprint plus a margin stays below the cap.

    Options set to `auto` are reduced in this order: MLX's cache of freed buffers, the micro-batch down to a quarter of
    the size that suits the device, the activation cache in memory, activations (gradient checkpointing), the
    micro-batch down to one sequence. Only the division into micro-batches can change a MeZO loss, by float32 rounding.

    Raises:
        DoesNotFit: no settings fit. The details are the components of the smallest estimate, and alternatives.
    """
    predictor = Predictor(shape, config, data, on_cpu)
    found = try_fit(predictor, cap_bytes)
    if found is not None:
        above = () if predictor.on_cpu else above_working_set(cap_bytes)
        return dataclasses.replace(found, notes=(*found.notes, *above))
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
    flags = ", ".join(f"{flag(option)} {value}" for option, value in ways.items())
    raise DoesNotFit(
        message,
        ("any of these would fit: " if len(ways) > 1 else "this would fit: ") + flags,
        [*component_lines(least.components), f"with a margin of {margin} {format_bytes(needed_bytes(least))}"],
        needed_bytes=needed_bytes(least),
        ways=ways,
    )


def try_fit(predictor: Predictor, cap_bytes: int) -> Fit | None:
    """`fit` without an error: None if the run does not fit."""
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
    """The estimate of the run with the smallest footprint that it can be made to have."""
    ways = (
        predictor.estimate(
            dataclasses.replace(settings, micro_batch=micro_batch, cache_limit_bytes=least_cache(predictor.on_cpu))
        )
        for settings in _ways(predictor)
        for micro_batch in (1, settings.micro_batch)
    )
    return min(ways, key=lambda predicted: predicted.footprint_bytes)


def above_working_set(cap_bytes: int) -> tuple[str, ...]:
    """A warning of a cap above the memory that the GPU of a Mac can hold at once; empty where there is none."""
    limit = gpu_working_set_bytes()
    if limit is None or cap_bytes <= limit:
        return ()
    return (
        f"the cap is above the {format_bytes(limit)} that macOS lets the GPU hold at once: a run that takes more "
        "is slow, or the system ends it",
    )


def needed_bytes(predicted: MemoryEstimate) -> int:
    """The smallest cap for a run with this prediction: the footprint and the margin."""
    # One byte more, against the rounding.
    return math.ceil(predicted.footprint_bytes * (1.0 + coefficient("margin"))) + 1


def least_cache(on_cpu: bool) -> int:
    """The smallest limit of MLX's cache of freed buffers, in bytes, that a run is given. Without a cache every array of
    a forward pass would be a new buffer, which is slow to make on a GPU."""
    return 0 if on_cpu else int(coefficient("default_cache_bytes"))


def cache_limit(predicted: MemoryEstimate, on_cpu: bool) -> int:
    """Bytes to limit MLX's cache of freed buffers to at little cost in time: on the CPU MLX's own limit, on a GPU the
    memory that a step frees again, but at most a tenth of the footprint."""
    default = int(coefficient("default_cache_bytes"))
    if on_cpu:
        return default
    freed = predicted.peak_bytes - predicted.bytes_of("weights", "adapters", "optimiser state", "activation cache")
    return max(default, min(freed, predicted.footprint_bytes // 10))


def alternatives(predictor: Predictor, cap_bytes: int) -> dict[str, str]:
    """Options with values, each of which alone makes the run fit; of them the cap that the run itself would need."""
    config, shape, data, on_cpu = predictor.config, predictor.shape, predictor.data, predictor.on_cpu

    def fits(model: ModelShape, **changes: str) -> bool:
        tried = dataclasses.replace(config, **changes)
        return try_fit(Predictor(model, tried, data, on_cpu), cap_bytes) is not None

    ways: dict[str, str] = {}
    if config.checkpointing == "off" and config.method == "bp" and fits(shape, checkpointing="on"):
        ways["checkpointing"] = "on"
    if "lora" not in config.scope and fits(shape, scope="lora"):
        ways["scope"] = "lora"
    if config.method == "bp" and fits(shape, method="mezo"):
        ways["method"] = "mezo"
    smaller = (
        entry
        for entry in sorted(load_registry().values(), key=lambda entry: -entry.parameters)
        if entry.parameters <= shape.parameters
        and entry.name != shape.name
        # Quantised weights cannot train, and only they have scales.
        and not (entry.shape.quantised and "full" in config.parsed_scope.kinds)
        and not (not entry.shape.quantised and "scales" in config.parsed_scope.kinds)
    )
    if (found := next((entry.name for entry in smaller if fits(shape_of_entry(entry))), None)) is not None:
        ways["model"] = found
    # Rounded up to 10 MB, the precision of the option shown.
    need = -(-needed_bytes(smallest(predictor)) // 10**7)
    return {**ways, "memory_cap": f"{need / 100:.2f}GB"}


def describe_method(config: RunConfig) -> str:
    """`MeZO on full`, `backpropagation on lora with checkpointing`."""
    name = "MeZO" if config.method == "mezo" else "backpropagation"
    return f"{name} on {config.scope}" + (" with checkpointing" if config.checkpointing == "on" else "")


def _ways(predictor: Predictor) -> Iterator[Settings]:
    """The settings that `auto` leaves open, fastest first."""
    config = predictor.config
    settings = Settings.of(config, predictor.on_cpu)
    backward = config.method == "bp"
    for checkpointing in (False, True) if backward and config.checkpointing == "auto" else (settings.checkpointing,):
        for keeps in _prefix_choices(predictor):
            yield dataclasses.replace(settings, checkpointing=checkpointing, keeps_prefix=keeps)


def _prefix_choices(predictor: Predictor) -> Sequence[bool]:
    config = ResolvedConfig.of(predictor.config)
    if not predictor.prefix_bytes:
        return (False,)
    if config.activation_cache != "auto":
        return (config.activation_cache == "ram",)
    # The cache pays off only if the run reads its examples more than once.
    pays = config.steps * config.batch_size > len(predictor.data.train)
    return (True, False) if pays else (False,)


def _largest_micro_batch(predictor: Predictor, settings: Settings, cap_bytes: int) -> Fit | None:
    """The run with the largest micro-batch that fits, or None."""

    def attempt(rows: int | None) -> Fit | None:
        tried = dataclasses.replace(settings, micro_batch=rows, cache_limit_bytes=0)
        bare = predictor.estimate(tried)
        room = int(cap_bytes / (1.0 + coefficient("margin"))) - bare.footprint_bytes
        if room < least_cache(predictor.on_cpu):
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
    if settings.micro_batch is not None and settings.micro_batch != config.micro_batch:
        notes.append(f"micro-batches of at most {counted(settings.micro_batch, 'sequence')}")
    if settings.checkpointing and config.checkpointing == "auto":
        notes.append("gradient checkpointing")
    if settings.keeps_prefix and config.activation_cache == "auto":
        notes.append("the output of frozen layers kept in memory")
    notes.append(f"MLX's cache of freed buffers limited to {format_bytes(limit)}")
    resolved = dataclasses.replace(
        config,
        micro_batch=settings.micro_batch,
        checkpointing="on" if settings.checkpointing else "off",
        activation_cache=_activation_cache(predictor, settings),
    )
    return Fit(resolved, predictor.estimate(settings), cap_bytes, limit, tuple(notes))


def _activation_cache(predictor: Predictor, settings: Settings) -> str:
    asked = predictor.config.activation_cache
    if asked != "auto" or not predictor.prefix_bytes:
        return asked
    # Not on disk: the file is memory-mapped, and the system may count the pages as the process's memory.
    return "ram" if settings.keeps_prefix else "off"
